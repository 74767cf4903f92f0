"""The extension as a whole: what it hands to ComfyUI, and that a broken part takes no other with it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "peft", "accelerate", "transformers", "cv2", "matplotlib")


def test_comfyui_gets_every_node(pack: ModuleType, nodes: dict[str, Any]) -> None:
    extension = asyncio.run(pack.comfy_entrypoint())
    assert len(asyncio.run(extension.get_node_list())) == len(nodes) > 0
    assert (ROOT / pack.WEB_DIRECTORY).is_dir()


def test_no_module_is_off(module_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        module_of("nodes").all_nodes()
    assert caplog.messages == []


def test_every_file_of_nodes_is_asked(module_of: Any) -> None:
    with_nodes = {path.stem for path in (ROOT / "nodes").glob("*.py") if "\nNODES" in path.read_text()}
    assert with_nodes == set(module_of("nodes").MODULES)


def test_a_broken_module_disables_only_its_nodes(
    module_of: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, all_of_them = module_of("nodes"), module_of("nodes").all_nodes()
    monkeypatch.setitem(sys.modules, f"{whole.__name__}.evaluation", None)  # what a failed import looks like
    left = whole.all_nodes()
    assert {node for node in all_of_them if not node.__module__.endswith(".evaluation")} == set(left)
    (line,) = caplog.messages
    assert "evaluation" in line
    assert "requirements.txt" in line


def test_a_broken_schema_disables_only_its_nodes(
    module_of: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(module_of("nodes.evaluation").Metrics, "define_schema", broken)
    assert not any(node.__module__.endswith(".evaluation") for node in module_of("nodes").all_nodes())
    (line,) = caplog.messages
    assert "two lines" in line


def test_an_id_twice_disables_only_its_nodes(
    module_of: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema that can be made, but that ComfyUI refuses: it would take the whole extension down."""
    metrics = module_of("nodes.evaluation").Metrics
    made = metrics.define_schema()
    made.outputs[0].id = made.inputs[0].id
    monkeypatch.setattr(metrics, "define_schema", lambda: made)
    left = module_of("nodes").all_nodes()
    assert left and not any(node.__module__.endswith(".evaluation") for node in left)
    (line,) = caplog.messages
    assert "nodes/evaluation.py are off (ids must be unique)" in line


def test_outside_comfyui_the_pack_is_empty() -> None:
    code = "import standin; print(hasattr(standin.load_pack(), 'WEB_DIRECTORY'))"
    assert printed(code) == "False"


def test_loading_the_nodes_imports_nothing_heavy() -> None:
    code = (
        "import sys, pathlib, standin\n"
        "with standin.installed(pathlib.Path('nowhere')):\n"
        "    pack = standin.load_pack()\n"
        "    assert sys.modules[pack.__name__ + '.nodes'].all_nodes()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert printed(code) == "[]"


def printed(code: str) -> str:
    """What a Python of its own prints."""
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    return done.stdout.strip()
