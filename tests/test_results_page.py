"""The results page: orders that seeds can tell, the plot over budgets, and what a later call keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_parts import finish, plan_of


def test_orders_within_the_spread_are_not_told_apart_and_aims_are_distances(bench: Any) -> None:
    def line(name: str, *values: float) -> Any:
        planned = bench.plan.Planned(test=list(values))
        return bench.page.Line(bench.rows.Row(name, name, ""), planned, [{"values": {"x": v}} for v in values])

    lines = {"a": line("a", 1.0, 3.0), "b": line("b", 2.5), "far": line("far", 9.0), "aim": line("aim", 8.0)}
    claim = bench.rows.Claim

    def say(better: str, worse: str, **rest: Any) -> str:
        return bench.page.verdict(claim(better, worse, "x", "", "", **rest), lines)

    assert say("a", "b") == "can't be told apart"
    assert say("a", "far") == "agrees" and say("a", "far", higher=True) == "**disagrees**"
    assert say("far", "a", target="aim") == "agrees"
    lines["part"] = bench.page.Line(lines["b"].row, bench.plan.Planned(test=[1, 2]), lines["b"].results)
    assert say("part", "far") == say("far", "part") == "not all seeds yet"
    lines |= {"once": line("once", 2.49), "other": line("other", 2.2)}
    assert say("b", "once") == say("once", "b") == "can't be told apart" and say("other", "b") == "agrees"
    assert say("a", "none") == "not run" and say("a", "b", target="none") == "not run"


def test_quality_over_flops_is_drawn_of_several_budgets(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0, 1), sweep_budget=0.5)
    row = plan.rows["w2s"]
    for cell, distance in zip(plan.of(row).cells, (3.0, 1.0, 2.0), strict=True):
        finish(cell, tmp_path, frechet_video=distance)
    for cell, distance in zip(plan.of(row).test, (4.0, 6.0), strict=True):
        finish(cell, tmp_path, frechet_video=distance)
    assert bench.pictures.flops_curve(bench.page.lines_of(plan), plan) is None
    other = plan_of(bench, tmp_path, costs, seeds=(0,), budget=2.0, sweep=())
    finish(other.of(row).test[0], tmp_path, frechet_video=2.5)
    line = bench.page.lines_of(plan)["w2s"]
    assert bench.pictures.flops_curve({"w2s": line}, plan) is not None
    found = bench.pictures.at_budgets(line, plan)
    assert list(found) == pytest.approx([260e-12, 520e-12]) and list(found.values()) == [[4.0, 6.0], [2.5]]


def test_cells_that_know_other_settings_are_on_the_plot_too(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0, 1), sweep=())
    other = plan_of(bench, tmp_path, costs, seeds=(0,), budget=2.0, sweep=())
    for at, cells in ((plan, plan.of(plan.rows["w2s"]).test), (other, other.of(other.rows["w2s"]).test)):
        for cell in cells:
            finish(cell, tmp_path, frechet_video=3.0 if at is plan else 2.0)
    for cell in plan.of(plan.rows["w2s"]).test:  # of a version that kept more
        found = json.loads(cell.place(tmp_path).read_text())
        found["recipe"] |= {"guard.every": 0, "guard.clips": 64}
        cell.place(tmp_path).write_text(json.dumps(found))
    line = bench.page.lines_of(plan)["w2s"]
    assert list(bench.pictures.at_budgets(line, plan).values()) == [[3.0, 3.0], [2.0]]
    found["recipe"]["matching.alpha_weak"] = 0.5
    assert not bench.pictures.differ_in_budget(found, line.results[0])


def test_a_later_call_keeps_the_grid_and_another_budget_has_a_page_of_its_own(bench: Any, tmp_path: Path) -> None:
    out, docs = tmp_path / "bench", tmp_path / "docs"
    rows = {row.name: row for row in bench.rows.grid()}
    plan = bench.plan.Plan(rows.values(), bench.plan.Options(), out / "small", bench.plan.Costs(out / "flops.json"))
    recipe = plan.resolved(rows["grid_25_115"], 0)
    cell = bench.cells.Cell("grid_25_115", bench.cells.Subject(recipe, "portraits_long"), "student", 512, 1_000_000)
    own = {"--out": out, "--docs": docs, "--size": "small", "--minutes": 0, "--rows": "data"}
    words = [str(word) for pair in own.items() for word in pair]
    assert bench.results.main(words) == 0
    page = (docs / "results.md").read_text()
    assert "alpha_weak against guidance" not in page and {path.name for path in docs.iterdir()} == {
        "results.md",
        "results.json",
    }
    finish(cell, out / "small", frechet_video=3.0)
    assert bench.results.main([*words, "--budget", "0.5"]) == 0
    assert (docs / "results.md").read_text() == page
    assert "0.5 times what 120 updates" in (docs / "results_x0.5.md").read_text()
    assert bench.results.main(words) == 0
    assert "## alpha_weak against guidance" in (docs / "results.md").read_text()
