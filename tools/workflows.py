"""Write every workflow, its API twin and its thumbnail: python tools/workflows.py"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import flows
import portrait_flows
from core_nodes import CORE, Kind
from graph import Flow, own_kinds
from packed import ROOT

FOLDER = ROOT / "workflows"
FLOWS: tuple[Callable[[dict[str, Kind]], Flow], ...] = (
    portrait_flows.teacher,
    portrait_flows.distil,
    flows.few_step,
    flows.high_low,
    flows.distil_clips,
    flows.distil_prompts,
    flows.any_model_clips,
    flows.any_model_prompts,
    flows.hunyuan_prompts,
    flows.weak_weights,
    flows.compare,
)


def all_flows() -> list[Flow]:
    """Every workflow, of the schemas as they are."""
    kinds = CORE | own_kinds()
    return [make(kinds) for make in FLOWS]


def text(tree: Any) -> str:
    """JSON as the files have it."""
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the files; what is in the folder and no workflow any more goes."""
    from brand import thumbnail

    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    made = all_flows()
    for flow in made:
        (FOLDER / f"{flow.name}.json").write_text(text(flow.page()), encoding="utf-8")
        (FOLDER / "api" / f"{flow.name}.json").write_text(text(flow.api()), encoding="utf-8")
    for number, flow in enumerate(made):
        thumbnail(flow.title, number).save(FOLDER / f"{flow.name}.jpg", quality=88)
    names = {flow.name for flow in made}
    for path in [*FOLDER.glob("*.*"), *(FOLDER / "api").glob("*.json")]:
        if path.stem not in names:
            path.unlink()


if __name__ == "__main__":
    main()
