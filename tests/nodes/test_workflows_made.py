"""The workflow files are what `tools/workflows.py` makes, and hold together by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graph import Flow

import workflows

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "workflows").glob("*.json"))
HOW = "run python tools/workflows.py"


@pytest.fixture(scope="module")
def flows() -> dict[str, Flow]:
    return {flow.name: flow for flow in workflows.all_flows()}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_files_are_those_of_the_tool(flows: dict[str, Flow]) -> None:
    assert [path.stem for path in PAGES] == sorted(flows), HOW
    for name, flow in flows.items():
        assert (ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8") == workflows.text(flow.page()), HOW
        assert (ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8") == workflows.text(
            flow.api()
        ), HOW


def test_every_node_stands_in_a_workflow(flows: dict[str, Flow], nodes: dict[str, Any]) -> None:
    assert set(nodes) <= {node.name for flow in flows.values() for node in flow.nodes}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_join_outputs_and_inputs_of_one_type(path: Path) -> None:
    page = read(path)
    nodes = {node["id"]: node for node in page["nodes"]}
    for key, source, out, target, into, kind in page["links"]:
        output, taken = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert key in output["links"], key
        assert taken["link"] == key
        ends = f"{nodes[source]['type']} to {nodes[target]['type']}"
        assert output["type"] == kind and kind in taken["type"].split(","), ends
        assert nodes[source]["order"] < nodes[target]["order"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_nodes_say_where_they_come_from_and_stand_apart(path: Path) -> None:
    page = read(path)
    boxes = []
    for node in page["nodes"]:
        x, y = node["pos"]
        boxes.append((x, y - 30, x + node["size"][0], y + node["size"][1]))
        if node["type"] != "MarkdownNote":
            assert {"cnr_id", "ver"} <= set(node["properties"]), node["type"]
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, f"{one} {other}"
    notes = [node for node in page["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == len(page["groups"])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_downloads_are_named_where_a_node_loads_a_file(path: Path) -> None:
    for node in read(path)["nodes"]:
        for about in node["properties"].get("models", ()):
            assert about["url"].startswith("https://") and about["url"].endswith(about["name"])
            assert about["name"].endswith(".safetensors")
            assert about["name"] in node["widgets_values"]
            assert about["directory"] in ("diffusion_models", "loras", "text_encoders", "vae")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_twin_names_its_nodes(path: Path) -> None:
    """A node without `_meta` lets some servers answer 500."""
    assert all(node["_meta"]["title"] for node in read(path.parent / "api" / path.name).values())
    assert path.with_suffix(".jpg").is_file()
