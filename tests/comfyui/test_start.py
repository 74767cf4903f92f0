"""The extension in a real ComfyUI: it loads without a warning, fast, and serves its pages and languages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from drive import get
from host import ROOT, Server

IDS = {
    name
    for path in (ROOT / "nodes").glob("*.py")
    for name in re.findall(r'node_id="(W2SVD_\w+)"', path.read_text(encoding="utf-8"))
}


def test_the_pack_loads_without_a_warning(comfy: Server) -> None:
    log = comfy.logged().partition("got prompt")[0]  # what other tests have queued is theirs
    assert "IMPORT FAILED" not in log
    assert [line for line in log.splitlines() if "W2SVD" in line or ("w2svd" in line.lower() and "rror" in line)] == []


def test_the_pack_takes_under_half_a_second(comfy: Server) -> None:
    (seconds,) = re.findall(r"([\d.]+) seconds[^:]*: .*custom_nodes.w2svd", comfy.logged())
    assert float(seconds) < 0.5


def test_every_node_is_there(object_info: dict[str, Any]) -> None:
    assert {name for name in object_info if name.startswith("W2SVD_")} == IDS
    assert {object_info[name]["python_module"] for name in IDS} == {"custom_nodes.w2svd"}


def test_every_node_has_a_help_page(comfy: Server) -> None:
    for name in IDS:
        for page in (f"{name}.md", f"{name}/zh.md"):
            assert get(comfy.url, f"/extensions/w2svd/docs/{page}").startswith(b"#"), page


def test_names_in_two_languages_are_served(comfy: Server) -> None:
    served = get(comfy.url, "/i18n")
    for language in ("en", "zh"):
        assert set(served[language]["nodeDefs"]) >= IDS, language


def test_every_workflow_is_a_template_with_a_thumbnail(comfy: Server) -> None:
    served = get(comfy.url, "/workflow_templates")["w2svd"]
    assert set(served) == {path.stem for path in (ROOT / "workflows").glob("*.json")}
    for name in served:
        assert "nodes" in _json(get(comfy.url, f"/api/workflow_templates/w2svd/{name}.json")), name
        assert get(comfy.url, f"/api/workflow_templates/w2svd/{name}.jpg")[:2] == b"\xff\xd8", name


def _json(body: Any) -> Any:
    return json.loads(body) if isinstance(body, bytes) else body


def test_no_other_folder_of_examples_hides_the_workflows() -> None:
    other = ("example_workflows", "example", "examples", "workflow")
    assert not [name for name in other if (Path(ROOT) / name).exists()]
