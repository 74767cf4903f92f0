"""A real ComfyUI: its checkout is named by COMFYUI_PATH, a Chromium by COMFYUI_BROWSER; without them tests are skipped.

COMFYUI_PYTHON names the Python that runs it (the tests' own otherwise), COMFYUI_SHOTS a folder for screenshots.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host import ROOT, Server, running

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what has no ComfyUI, with the reason; run all that share a server in one process."""
    for item in items:
        if HERE in item.path.parents and not os.environ.get("COMFYUI_PATH"):
            item.add_marker(pytest.mark.skip(reason="COMFYUI_PATH does not name a ComfyUI checkout"))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The ComfyUI checkout."""
    path = Path(os.environ["COMFYUI_PATH"]).resolve()
    if not (path / "main.py").is_file():
        pytest.fail(f"COMFYUI_PATH {path} is no ComfyUI checkout: it has no main.py")
    return path


@pytest.fixture(scope="session")
def comfy(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI with the extension."""
    home = tmp_path_factory.mktemp("comfyui")
    put_placeholders(home)
    with running(checkout, home) as server:
        yield server


def put_placeholders(home: Path) -> None:
    """Empty files for the models that workflows name, so that the page finds them in its lists."""
    pipeline = home / "models" / "diffusers" / "Wan2.1-T2V-1.3B-Diffusers" / "model_index.json"
    pipeline.parent.mkdir(parents=True)
    pipeline.touch()
    for path in (ROOT / "workflows").glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            for about in node["properties"].get("models", ()):
                target = home / "models" / about["directory"] / about["name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()


@pytest.fixture(scope="session")
def browser() -> str:
    """Chromium's executable."""
    name = os.environ.get("COMFYUI_BROWSER", "")
    found = shutil.which(name) if name else None
    if found is None:
        pytest.skip("COMFYUI_BROWSER does not name a Chromium")
    return found


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    return Path(os.environ.get("COMFYUI_SHOTS") or tmp_path_factory.mktemp("shots"))


@pytest.fixture(scope="session")
def object_info(comfy: Server) -> dict[str, Any]:
    """Every node of the running ComfyUI, as the page gets it."""
    from drive import get

    found: dict[str, Any] = get(comfy.url, "/object_info")
    return found


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny Wan of diffusers, and its native file."""
    from native_tiny import import_comfy, new_twin

    import_comfy()
    return new_twin(tmp_path_factory.mktemp("twin"))


@pytest.fixture
def patcher(twin: tuple[Any, Path]) -> Any:
    """The tiny Wan as a MODEL, in this process."""
    from native_tiny import loaded

    return loaded(twin[1])
