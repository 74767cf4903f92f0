"""The record of results: a table goes on from a clean checkout on another machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_parts import cell_of, finish, plan_of

from w2svd_core.errors import UserError


def test_what_one_machine_gives_another_takes(bench: Any, tmp_path: Path) -> None:
    here, there, docs = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    costs = bench.plan.Costs(here / "flops.json")
    plan = plan_of(bench, here, costs, seeds=(0, 1), sweep=())
    cells = plan.of(plan.rows["w2s"]).test
    for cell, value in zip(cells, (2.0, 3.0), strict=True):
        finish(cell, here, frechet_video=value)
    bench.record.give(docs, here, costs)
    text = (docs / "results.json").read_text()
    assert str(tmp_path) not in text
    recipe = json.loads(text)["cells"][cells[1].key]["recipe"]
    assert recipe["seed"] == 1 and "data.folder" not in recipe  # what is at its default stands there once

    other = bench.plan.Costs(there / "flops.json")
    assert bench.record.take(docs, there, other) == 2
    assert other.known == costs.known != {}
    again = plan_of(bench, there, other, seeds=(0, 1), sweep=())
    other.counting = False  # nothing has to be counted again
    assert [cell.read(there) for cell in again.of(again.rows["w2s"]).test] == [cell.read(here) for cell in cells]
    assert bench.page.lines_of(again)["w2s"].mean("frechet_video") == 2.5


def test_what_the_folder_has_already_stays(bench: Any, tmp_path: Path) -> None:
    here, docs, costs = tmp_path / "here", tmp_path / "docs", bench.plan.Costs(tmp_path / "flops.json")
    cell = cell_of(bench)
    finish(cell, here, frechet_video=2.0)
    bench.record.give(docs, here, costs)
    finish(cell, here, frechet_video=7.0)
    assert bench.record.take(docs, here, costs) == 0
    assert cell.read(here)["values"]["frechet_video"] == 7.0


def test_without_a_record_nothing_is_taken(bench: Any, tmp_path: Path) -> None:
    assert bench.record.take(tmp_path, tmp_path / "bench", bench.plan.Costs(tmp_path / "flops.json")) == 0


@pytest.mark.parametrize("text", ["", "[1]", '{"cells": {}}', '{"defaults": {}, "costs": {}, "cells": {"a": 1}}'])
def test_a_broken_record_is_one_sentence(bench: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json is no record"):
        bench.record.take(tmp_path, tmp_path / "bench", bench.plan.Costs(tmp_path / "flops.json"))
