"""Every workflow in the page: no node missing or red, no exception, and what it queues is its API twin."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from drive import open_workflow
from host import ROOT, Server

sys.path.insert(0, str(ROOT / "tools"))

from core_nodes import CORE

WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_opens(name: str, comfy: Server, browser: str, shots: Path) -> None:
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    page = open_workflow(comfy.url, workflow, browser, shots / f"{name}.png")
    assert page.missing == []
    assert page.red == []
    assert page.faults == []
    assert page.alerts == []
    twin = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert {key: node["class_type"] for key, node in page.api.items()} == {
        key: node["class_type"] for key, node in twin.items()
    }
    for key, node in twin.items():
        shown = page.api[key]["inputs"]
        assert {one: shown.get(one) for one in node["inputs"]} == node["inputs"], f"{key} {node['class_type']}"


def test_core_nodes_are_as_the_workflows_take_them(object_info: dict[str, Any]) -> None:
    for name, kind in CORE.items():
        info = object_info[name]
        taken = {
            key: about for group in ("required", "optional") for key, about in info["input"].get(group, {}).items()
        }
        assert [entry.name for entry in kind.outputs] == info["output_name"][: len(kind.outputs)], name
        required = set(info["input"].get("required", {}))
        assert required <= {entry.name for entry in (*kind.sockets, *kind.widgets)} <= set(taken), name
        for socket in kind.sockets:
            assert taken[socket.name][0] == socket.type, f"{name}.{socket.name}"
        values = [key for key, about in taken.items() if is_widget(about[0])]
        assert [widget.name for widget in kind.widgets] == values[: len(kind.widgets)], name


def is_widget(kind: Any) -> bool:
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
