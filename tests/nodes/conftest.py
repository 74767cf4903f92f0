"""The nodes over the stand-in for ComfyUI."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from standin import installed, load_pack

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

Modules = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def comfy_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's folders."""
    home = tmp_path_factory.mktemp("comfy")
    for folder in ("input", "output", "temp", "models/diffusion_models", "models/loras"):
        (home / folder).mkdir(parents=True)
    return home


@pytest.fixture(scope="module")
def pack(comfy_home: Path) -> Iterator[ModuleType]:
    """The extension, loaded as ComfyUI does it; the stand-in is there as long as the tests of a file run."""
    with installed(comfy_home):
        yield load_pack()


@pytest.fixture(scope="module")
def module_of(pack: ModuleType) -> Modules:
    """A module of the pack by its name, such as "nodes.compat" or "w2svd_core.errors"."""
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")


@pytest.fixture(scope="module")
def nodes(module_of: Modules) -> dict[str, Any]:
    """Every node by its id."""
    return {node.define_schema().node_id: node for node in module_of("nodes").all_nodes()}


@pytest.fixture(scope="module")
def schemas(nodes: dict[str, Any]) -> dict[str, Any]:
    """Every schema by its node's id."""
    return {name: node.define_schema() for name, node in nodes.items()}
