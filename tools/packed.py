"""The extension's schemas without ComfyUI, for the tools of this folder."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "nodes"))

import standin  # noqa: E402


def schemas() -> dict[str, Any]:
    """Every schema by its node's id, over empty model folders."""
    with tempfile.TemporaryDirectory() as home, standin.installed(Path(home)):
        pack = standin.load_pack("w2svd_for_tools")
        nodes = sys.modules[f"{pack.__name__}.nodes"].all_nodes()
        return {schema.node_id: schema for schema in (node.define_schema() for node in nodes)}
