"""The record of results: a table goes on from a clean checkout on another machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_parts import cell_of, command, finish, plan_of

from w2svd_core.config import load_recipe
from w2svd_core.errors import UserError

DOCS = Path(__file__).parents[1] / "docs"


def test_what_one_machine_gives_another_takes(bench: Any, tmp_path: Path) -> None:
    here, there, docs = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    costs = bench.plan.Costs(here / "flops.json")
    plan = plan_of(bench, here, costs, seeds=(0, 1), sweep=())
    cells = plan.of(plan.rows["w2s"]).test
    for cell, value in zip(cells, (2.0, 3.0), strict=True):
        finish(cell, here, frechet_video=value)
    bench.record.give(docs / "results.json", here, costs)
    text = (docs / "results.json").read_text()
    assert str(tmp_path) not in text
    recipe = json.loads(text)["cells"][cells[1].key]["recipe"]
    assert recipe["seed"] == 1 and "data.folder" not in recipe  # what is at its default stands there once

    other = bench.plan.Costs(there / "flops.json")
    assert bench.record.take(docs / "results.json", there, other) == 2
    assert other.known == costs.known != {}
    again = plan_of(bench, there, other, seeds=(0, 1), sweep=())
    other.counting = False  # nothing has to be counted again
    assert [cell.read(there) for cell in again.of(again.rows["w2s"]).test] == [cell.read(here) for cell in cells]
    assert bench.page.lines_of(again)["w2s"].mean("frechet_video") == 2.5


def test_what_the_folder_has_already_stays(bench: Any, tmp_path: Path) -> None:
    here, record, costs = tmp_path / "here", tmp_path / "results.json", bench.plan.Costs(tmp_path / "flops.json")
    cell = cell_of(bench)
    finish(cell, here, frechet_video=2.0)
    bench.record.give(record, here, costs)
    finish(cell, here, frechet_video=7.0)
    assert bench.record.take(record, here, costs) == 0
    assert cell.read(here)["values"]["frechet_video"] == 7.0


def test_without_a_record_nothing_is_taken(bench: Any, tmp_path: Path) -> None:
    costs = bench.plan.Costs(tmp_path / "flops.json")
    assert bench.record.take(tmp_path / "results.json", tmp_path / "bench", costs) == 0


@pytest.mark.parametrize("text", ["", "[1]", '{"cells": {}}', '{"cells": {"a": 1}, "defaults": {}}'])
def test_a_broken_record_is_one_sentence(bench: Any, tmp_path: Path, text: str) -> None:
    record = tmp_path / "results.json"
    record.write_text(text)
    with pytest.raises(UserError, match=r"results\.json is no record"):
        bench.record.take(record, tmp_path / "bench", bench.plan.Costs(tmp_path / "flops.json"))


def test_what_the_record_got_meanwhile_is_kept(bench: Any, tmp_path: Path) -> None:
    record, costs = tmp_path / "results.json", bench.plan.Costs(tmp_path / "flops.json")
    ours, theirs = cell_of(bench), cell_of(bench, {"seed": 1})
    finish(ours, tmp_path / "a", frechet_video=1.0)
    finish(theirs, tmp_path / "b", frechet_video=2.0)
    bench.record.take(record, tmp_path / "a", costs)
    bench.record.give(record, tmp_path / "b", costs)  # before the first one is done
    bench.record.give(record, tmp_path / "a", costs)
    assert set(json.loads(record.read_text())["cells"]) == {ours.key, theirs.key}


def test_a_newer_cell_of_the_record_takes_the_place_of_an_older_one(bench: Any, tmp_path: Path) -> None:
    record, costs, cell = tmp_path / "results.json", bench.plan.Costs(tmp_path / "flops.json"), cell_of(bench)
    for folder, date, value in (("new", "2026-11-22", 1.0), ("old", "2026-10-01", 2.0)):
        finish(cell, tmp_path / folder, frechet_video=value)
        place = cell.place(tmp_path / folder)
        place.write_text(json.dumps({**json.loads(place.read_text()), "date": date}))
    bench.record.give(record, tmp_path / "new", costs)
    bench.record.give(record, tmp_path / "old", costs)
    for folder in ("new", "old"):
        assert cell.read(tmp_path / folder)["values"]["frechet_video"] == 1.0


def test_what_diverged_there_is_not_tried_here(bench: Any, tmp_path: Path, costs: Any) -> None:
    here, there, record = tmp_path / "here", tmp_path / "there", tmp_path / "results.json"
    counted = bench.plan.Costs(tmp_path / "flops.json")
    plan = plan_of(bench, here, costs, seeds=(0,))
    half, one, twice = plan.of(plan.rows["w2s"]).cells
    finish(half, here, frechet_video=3.0)
    finish(one, here, frechet_video=2.0)
    bench.cells.note_usage(twice.subject, here, None, False, diverged=True)
    bench.record.give(record, here, counted)
    bench.record.take(record, there, counted)
    again = plan_of(bench, there, costs, seeds=(0,))
    assert again.factor(again.rows["w2s"]) == 1.0
    assert bench.work.Workers(there, 1).next_job([twice], set()) is None


# ---- sizes


def test_the_larger_table_has_a_teacher_of_its_own(bench: Any, tmp_path: Path, costs: Any) -> None:
    size = bench.sizes.SIZES["large"]
    options = {"sweep": (), "winner": "w2s", "seeds": (0,), "settings": size.settings}
    plan = plan_of(bench, tmp_path, costs, size.rows, **options)
    teacher = plan.of(plan.rows["teacher"]).test[0].subject
    (own,) = teacher.needs.values()
    assert (teacher.recipe.data.height, own.recipe.data.height, own.recipe.model.init) == (64, 64, "random")
    for row in size.rows:
        planned = plan.of(row)
        assert planned.test or row.kind == "model", (row.name, planned.why)
        needs = {need.key for cell in planned.test for need in bench.cells.before(cell.subject)}
        assert row.kind in ("data", "codec", "model") or own.key in needs, row.name
    table = bench.page.claims(bench.page.lines_of(plan)).splitlines()[4:]
    assert {line.count(" | ") for line in table if "---" not in line} == {6} and "first frame" not in "".join(table)


@pytest.mark.slow
def test_the_larger_table_trains_its_teacher_first(tmp_path: Path) -> None:
    tiny = {"model.heads": "1", "model.head_dim": "32", "model.ffn_dim": "32", "model.layers": "1"}
    words = [part for key, value in tiny.items() for part in (f"--{key}", value)]
    out, docs = tmp_path / "bench", tmp_path / "docs"
    words += ["--size", "large", "--docs", str(docs), "--rows", "teacher", "w2s", "--seeds", "0", "--clips", "50"]
    found = command(out, *words, "--sweep", "--model.compile", "false", "--jobs", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "portraits_teacher" in found.stdout.splitlines()[0]  # before what is built on it
    page = (docs / "results_large.md").read_text()
    assert "| 56 |" in page and "| 4 |" in page and "64 x 64" in page and "--size large" in page
    (cell,) = [
        one for one in json.loads((docs / "results_large.json").read_text())["cells"].values() if one["row"] == "w2s"
    ]
    assert len(cell["models"]["portraits_teacher"]) == 16


def test_flops_are_counted_apart_for_whatever_changes_them(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Any] = []

    def count(recipe: Any) -> Any:
        counted.append(recipe)
        return bench.budget.Cost(float(len(counted)), 1.0)

    monkeypatch.setattr(bench.plan, "cost_of", count)
    costs = bench.plan.Costs(tmp_path / "flops.json")

    def of(**changes: str) -> float:
        settings = {key.replace("__", "."): value for key, value in changes.items()}
        found: float = costs.of(load_recipe("portraits_gan", settings)).head_start
        return found

    own = of()
    assert own == of(seed="5") == of(student__lr="1e-3") == of(train__steps="7") == of(matching__alpha_weak=".5")
    others = [
        of(matching__alpha_weak="0"), of(rollout__reuse="fresh"), of(adversarial__depths=".5"), of(critic__updates="2"),
        of(matching__guidance_scale="1"), of(student__rank="8"),
    ]  # fmt: skip
    assert len({own, *others}) == len(counted) == 7
    again = bench.plan.Costs(tmp_path / "flops.json")
    assert again.of(load_recipe("portraits_gan")).head_start == own and len(counted) == 7


@pytest.mark.slow
def test_the_counts_of_the_record_are_those_of_todays_code(bench: Any, tmp_path: Path) -> None:
    known = bench.plan.Costs(tmp_path / "known" / "flops.json")
    known.learn(json.loads((DOCS / "results.json").read_text())["costs"])
    known.counting = False
    fresh = bench.plan.Costs(tmp_path / "fresh" / "flops.json")
    plan = plan_of(bench, tmp_path, known)
    counts: dict[Any, str] = {}
    for row in plan.rows.values():
        if row.kind != "student" or row.winner:
            continue
        recipe = plan.resolved(row, 0)
        models = {setting: plan.resolved(other, 0) for setting, other in plan.models(row).items()}
        then = known.of(recipe, models)
        if then not in counts:
            counts[then] = row.name
            assert fresh.of(recipe, models) == then, row.name
    assert len(counts) > 8
