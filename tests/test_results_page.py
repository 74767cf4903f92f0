"""The results page: orders that seeds can tell, the plot over budgets, and pages of other budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_parts import finish, plan_of


def test_orders_within_the_spread_are_not_told_apart_and_aims_are_distances(bench: Any) -> None:
    def line(name: str, *values: float) -> Any:
        planned = bench.plan.Planned(test=list(values))
        return bench.page.Line(bench.rows.Row(name, name, ""), planned, [{"values": {"x": v}} for v in values])

    lines = {"a": line("a", 1.0, 3.0), "b": line("b", 2.5), "far": line("far", 9.0), "aim": line("aim", 8.0)}
    claim = bench.claims.Claim

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


def test_quality_over_flops_is_drawn_of_rows_with_several_budgets(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0, 1), sweep=())
    own, half = plan.rows["w2s"], plan.rows["w2s_half"]
    for cell, distance in zip(plan.of(own).test, (4.0, 6.0), strict=True):
        finish(cell, tmp_path, frechet_video=distance)
    assert bench.pictures.flops_curve(bench.page.lines_of(plan), plan) is None
    for cell in plan.of(half).test:
        finish(cell, tmp_path, frechet_video=7.0)
    lines = bench.page.lines_of(plan)
    figure = bench.pictures.flops_curve(lines, plan)
    assert figure is not None
    (drawn,) = [line for line in figure.axes[0].lines if list(line.get_ydata()) == [7.0, 5.0]]
    assert list(drawn.get_xdata()) == pytest.approx([130e-12, 260e-12])


def test_other_budgets_try_the_rates_of_the_whole_one_and_half_of_them(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0, 1))
    own, double = plan.rows["w2s"], plan.rows["w2s_double"]
    assert not plan.may_win(double) and "of w2s is not done" in plan.of(double).why
    for cell, distance in zip(plan.sweep_cells(own), (3.0, 1.0, 2.0), strict=True):
        finish(cell, tmp_path, frechet_video=distance)
    assert plan.factors(double) == [0.5, 1.0] and plan.factors(plan.rows["w2s_half"]) == [1.0, 2.0]
    for cell, distance in zip(plan.sweep_cells(double), (1.0, 2.0), strict=True):
        finish(cell, tmp_path, frechet_video=distance)
    once, twice = (plan.of(row).test[0].subject.recipe for row in (own, double))
    assert twice.train.steps > 1.9 * once.train.steps and twice.student.lr == once.student.lr / 2


def test_each_seed_of_a_teacher_is_a_cell(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0, 1))
    assert [cell.subject.recipe.seed for cell in plan.of(plan.rows["teacher"]).test] == [0, 1]
    assert len(plan.of(plan.rows["euler_4"]).test) == len(plan.of(plan.rows["codec"]).test) == 1
    assert plan.of(plan.rows["teacher_4"]).test[0].subject.recipe.teacher.steps == 4


def test_another_budget_has_a_page_of_its_own(bench: Any, tmp_path: Path) -> None:
    out, docs = tmp_path / "bench", tmp_path / "docs"
    own = {"--out": out, "--docs": docs, "--size": "small", "--minutes": 0, "--rows": "data"}
    words = [str(word) for pair in own.items() for word in pair]
    assert bench.results.main(words) == 0
    page = (docs / "results.md").read_text()
    assert "## alpha_weak against guidance" in page and "## Other training budgets" in page
    assert {path.name for path in docs.iterdir()} == {"results.md", "results.json"}
    assert bench.results.main([*words, "--budget", "0.5"]) == 0
    assert (docs / "results.md").read_text() == page
    assert "0.5 times what 120 updates" in (docs / "results_x0.5.md").read_text()
