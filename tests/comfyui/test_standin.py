"""The stand-in of the tests without ComfyUI takes the keywords that the real module takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "nodes"))

import standin

PROBE = """
import inspect, json, sys
sys.argv = ["probe", "--cpu"]
from comfy_api.latest import io, ui, ComfyExtension, InputImpl, Types
import folder_paths
names = json.loads(sys.stdin.read())
def keywords(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]
print(json.dumps({
    "schema": keywords(io.Schema),
    "io": {name: [getattr(io, name).io_type, keywords(getattr(io, name).Input.__init__),
                  keywords(getattr(io, name).Output.__init__)] for name in names["io"]},
    "custom": keywords(io.Custom("X").Input.__init__),
    "several": keywords(io.MultiType.Input.__init__),
    "several_type": io.MultiType.Input("x", types=[io.Model, io.Custom("X")]).get_io_type(),
    "missing": [name for name in names["ui"] if not hasattr(ui, name)]
        + [name for name in names["hidden"] if not hasattr(io.Hidden, name)]
        + [name for name in names["folders"] if not hasattr(folder_paths, name)],
    "result": keywords(io.NodeOutput.__init__),
}))
"""


@pytest.fixture(scope="module")
def real(checkout: Path) -> dict[str, Any]:
    import os

    latest = standin.modules(False, Path())["comfy_api.latest"]
    asked = {
        "io": [*standin.SOCKETS, *standin.WIDGETS],
        "ui": list(vars(latest.ui)),
        "hidden": [one.name for one in latest.io.Hidden],
        "folders": [name for name in vars(standin.folder_paths(Path())) if not name.startswith("__")],
    }
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    code = [python, "-c", PROBE]
    done = subprocess.run(code, cwd=checkout, input=json.dumps(asked), capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def is_later(real: dict[str, Any]) -> bool:
    return "search_aliases" in real["schema"]


def test_schemas_take_the_same_keywords(real: dict[str, Any]) -> None:
    later = is_later(real)
    assert set(real["schema"]) >= set(standin.SCHEMA + (standin.LATER_SCHEMA if later else ()))
    if not later:
        assert set(real["schema"]) == set(standin.SCHEMA)


def test_inputs_and_outputs_take_the_same_keywords(real: dict[str, Any]) -> None:
    io = standin.io_module(is_later(real))
    for name, (text, taken, given) in real["io"].items():
        ours = getattr(io, name)
        assert ours.io_type == text, name
        assert set(ours.Input.allowed) <= set(taken), name
        assert set(ours.Output.allowed) <= set(given), name
        if not is_later(real):
            assert set(taken) == set(ours.Input.allowed), name
    assert set(io.Custom("X").Input.allowed) <= set(real["custom"])
    several = io.MultiType.Input("x", types=[io.Model, io.Custom("X")])
    assert set(type(several).allowed) <= set(real["several"])
    assert several.io_type == real["several_type"]


def test_what_the_nodes_use_is_there(real: dict[str, Any]) -> None:
    assert real["missing"] == []
    assert {"ui", "expand", "block_execution"} <= set(real["result"])
