"""The results table: keys, resume, stop, equal FLOPs, the sweep's choice, orders, and one real tiny cell."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_parts import cell_of, command, finish, plan_of

from w2svd_core.config import load_recipe, recipe_to_yaml
from w2svd_core.errors import UserError

# ---- keys


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"train.tracker": "none"},
        {"data.cache": "x"},
        {"evaluate.clips": 64},
        {"guard.saturation": 0.3},
    ],
)
def test_what_changes_no_number_changes_no_key(bench: Any, changes: dict[str, object]) -> None:
    assert cell_of(bench, changes).key == cell_of(bench).key


@pytest.mark.parametrize("changes", [{"seed": 1}, {"train.steps": 7}, {"student.lr": 1e-3}, {"data.clips": 64}])
def test_what_changes_a_number_changes_the_key(bench: Any, changes: dict[str, object]) -> None:
    assert cell_of(bench, changes).key != cell_of(bench).key


def test_the_key_holds_the_evaluation_the_assets_and_what_is_started_from(bench: Any, monkeypatch: Any) -> None:
    cell = cell_of(bench)
    after = bench.cells.Subject(cell.subject.recipe, "portraits_long", {"start": cell.subject})
    others = [cell_of(bench, clips=52), cell_of(bench, seed=2), cell_of(bench, kind="teacher")]
    others.append(cell_of(bench, subject=after))
    keys = {cell.key, *(other.key for other in others)}
    monkeypatch.setattr(bench.cells, "assets_version", lambda: "other")
    assert len({*keys, cell_of(bench).key}) == 6


def test_settings_that_come_later_and_are_off_leave_a_result(bench: Any, tmp_path: Path) -> None:
    cell = cell_of(bench)
    finish(cell, tmp_path)
    path = cell.place(tmp_path)
    then = json.loads(path.read_text())
    del then["recipe"]["data_forcing.probability"]
    path.write_text(json.dumps(then))
    assert cell.read(tmp_path) is not None
    then["recipe"]["student.lr"] = 0.5  # a default that meant something else when it was run
    path.write_text(json.dumps(then))
    assert cell.read(tmp_path) is None


# ---- what is left to do


def test_a_finished_cell_is_not_run_again_and_a_start_comes_first(bench: Any, tmp_path: Path) -> None:
    workers = bench.work.Workers(tmp_path, 1)
    first, cell = cell_of(bench, {"seed": 3}).subject, cell_of(bench)
    after = bench.cells.Cell("dfd", bench.cells.Subject(cell.subject.recipe, "portraits_dfd", {"start": first}),
                             "student", 50, 1)  # fmt: skip
    assert workers.next_job([cell, after], set()) is cell.subject
    assert workers.next_job([cell, after], {cell.subject.key}) is first
    bench.cells.note_usage(first, tmp_path, 5, True)
    (first.place(tmp_path) / "checkpoints").mkdir(parents=True)
    (first.place(tmp_path) / "checkpoints" / "000003.safetensors").touch()
    for subject in (first, after.subject):
        subject.place(tmp_path).mkdir(parents=True, exist_ok=True)
        (subject.place(tmp_path) / "recipe.yaml").write_text(recipe_to_yaml(subject.recipe))
    assert workers.next_job([after], set()) is after.subject
    bench.cells.note_usage(after.subject, tmp_path, 5, True)
    assert workers.next_job([after], set()) is after
    finish(after, tmp_path)
    assert workers.next_job([after], set()) is None


def test_a_stopped_training_goes_on_and_keeps_its_highest_peak(bench: Any, tmp_path: Path) -> None:
    subject = cell_of(bench, {"train.steps": 7}).subject
    arguments = bench.cells.arguments_of(subject, tmp_path)
    assert arguments[0] == "portraits_long"
    assert arguments[arguments.index("--train.steps") + 1] == "7"
    assert arguments[arguments.index("--evaluate.clips") + 1] == "0"
    bench.cells.note_usage(subject, tmp_path, 9, False)
    bench.cells.note_usage(subject, tmp_path, 5, True)
    assert bench.cells.usage(subject, tmp_path)["peak_memory"] == 9
    subject.place(tmp_path).mkdir(parents=True)
    (subject.place(tmp_path) / "recipe.yaml").write_text("seed: 0\n")
    assert bench.cells.arguments_of(subject, tmp_path) == ["--resume", str(subject.place(tmp_path))]


def test_nothing_begins_after_the_time_or_a_stop(bench: Any, tmp_path: Path) -> None:
    cell = cell_of(bench)
    for workers in (bench.work.Workers(tmp_path, 1, until=0.0), bench.work.Workers(tmp_path, 1, stopping=True)):
        workers.run(lambda: [cell])
        assert not (tmp_path / "logs").exists()


def test_a_stop_reaches_the_process_and_is_no_failure(bench: Any, tmp_path: Path) -> None:
    # as the command does; where SIGINT is ignored (a shell's background job), children would ignore it, too
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    workers = bench.work.Workers(tmp_path, 1)
    sleeper = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(workers.process("key", sleeper, "")))
    thread.start()
    log = tmp_path / "logs" / "key.log"
    while not (log.is_file() and "up" in log.read_text()):
        time.sleep(0.05)
    workers.stop()
    thread.join(20)
    signal.signal(signal.SIGINT, before)
    assert found and found[0][0] == -signal.SIGINT and not workers.failed


def test_a_fault_is_noted_and_not_tried_again(bench: Any, tmp_path: Path) -> None:
    workers, cell = bench.work.Workers(tmp_path, 1), cell_of(bench)
    code, peak = workers.process(cell.subject.key, [sys.executable, "-c", "raise SystemExit(3)"], "")
    assert code == 3 and (peak is None or peak > 1e6)
    assert workers.next_job([cell], set()) is None


# ---- equal FLOPs


def test_steps_come_from_the_budget(bench: Any) -> None:
    cost = bench.budget.Cost(20.0, 2.0)
    assert cost.of(120) == 260 and cost.steps(260) == 120 and cost.steps(261.9) == 121
    with pytest.raises(UserError, match="head start"):
        cost.steps(20.5)


def test_exits_are_averaged_along_a_line(bench: Any) -> None:
    step: list[int] = []

    def count() -> int:
        from w2svd_core import distillation

        step.append(distillation.draw_exit(4, torch.Generator()))
        return 100 + 10 * step[-1]

    assert bench.budget.over_exits(4, count) == 115 and step == [0, 3]
    assert bench.budget.over_exits(1, count) == 100


@pytest.mark.slow
def test_a_count_is_that_of_the_meta_device(bench: Any, tmp_path: Path) -> None:
    recipe = load_recipe("portraits_long", {"data.cache": str(tmp_path), "critic.updates": 1, "train.batch": 2})
    assert bench.budget.cost_of(recipe) == bench.budget.cost_of(recipe, torch.device("meta"))


def test_every_row_gets_the_same_flops(bench: Any, tmp_path: Path) -> None:
    prices = {"portraits_long": 2.0, "w2svd_paper": 3.0, "portraits_lcm": 1.0, "portraits_dfd": 2.0}
    counts = SimpleNamespace(of=lambda recipe, models: bench.budget.Cost(20.0, prices[recipe.name]))
    plan = plan_of(bench, tmp_path, counts, sweep=())
    rows = {name: plan.rows[name] for name in ("w2s", "dmd2", "w2svd_paper", "lcm", "dfd_w2s")}
    cells = {name: plan.test_cell(row, 0, 1.0) for name, row in rows.items()}
    assert {name: round(cell.cost) for name, cell in cells.items()} == dict.fromkeys(rows, 260)
    assert [cells[name].subject.recipe.train.steps for name in rows] == [120, 120, 80, 240, 29]
    start = cells["dfd_w2s"].subject.needs["start"]
    assert start.recipe.train.steps == 81 and start.recipe.seed == 0  # 0.7 of 260, its head start included
    part = plan.cell(rows["dfd_w2s"], 0, 1.0, 0.5, 128, 1_100_000)  # of the sweep
    assert part.cost == pytest.approx(130, abs=2) and part.subject.needs["start"].recipe.train.steps == 36
    assert cells["dfd_w2s"].subject.whole(tmp_path).start == str((tmp_path / "runs" / start.key).resolve())


# ---- the sweep, the winner


def test_the_sweep_is_on_validation_portraits_and_its_best_goes_to_the_test(
    bench: Any, tmp_path: Path, costs: Any
) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0, 4), sweep_budget=0.5)
    row = plan.rows["w2s"]
    before = plan.of(row)
    assert before.test == [] and "sweep" in before.why
    assert {(cell.seed, cell.clips, cell.subject.recipe.seed) for cell in before.cells} == {(1_100_000, 128, 0)}
    assert [cell.subject.recipe.student.lr for cell in before.cells] == [7.5e-5, 1.5e-4, 3e-4]
    assert [cell.subject.recipe.critic.lr for cell in before.cells] == [2.5e-4, 5e-4, 1e-3]
    assert {cell.subject.recipe.train.steps for cell in before.cells} == {55}  # half of 260
    for cell, distance in zip(before.cells, (3.0, 1.0, 2.0), strict=True):
        finish(cell, tmp_path, frechet_video=distance)
    after = plan.of(row)
    assert after.factor == 1.0
    assert [(cell.seed, cell.subject.recipe.seed, cell.subject.recipe.student.lr) for cell in after.test] == [
        (1_000_000, 0, 1.5e-4),
        (1_000_000, 4, 1.5e-4),
    ]


@pytest.mark.parametrize(
    ("distances", "tried", "taken"),
    [
        ({0.5: 3, 1: 2, 2: 1, 4: 1.5}, [0.5, 1, 2, 4], 2),
        ({0.5: 7, 1: 6, 2: 5, 4: 4, 8: 3, 16: 2, 32: 1}, [0.5, 1, 2, 4, 8, 16, 32], 32),  # so far and no further
        ({0.5: 1, 1: 2, 2: 3, 0.25: 0.5, 0.125: 2}, [0.125, 0.25, 0.5, 1, 2], 0.25),
        ({0.5: 2, 1: 1, 2: 3}, [0.5, 1, 2], 1),
    ],
)
def test_a_sweep_goes_on_while_the_best_lies_at_its_edge(
    bench: Any, tmp_path: Path, costs: Any, distances: dict[float, float], tried: list[float], taken: float
) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0,))
    row = plan.rows["w2s"]
    while (waiting := plan.of(row)).factor is None:
        left = [factor for factor in plan.factors(row) if plan.distance(row, factor) is None]
        assert "not done" in waiting.why and left
        for factor in left:
            finish(plan.sweep_cell(row, factor), tmp_path, frechet_video=distances[factor])
    assert plan.factors(row) == tried and plan.factor(row) == taken
    assert plan_of(bench, tmp_path, costs, sweep=(2.0,)).factors(row) == [2.0]


def test_the_first_seed_of_the_best_rates_is_the_sweeps_own_training(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0, 4))
    row = plan.rows["w2s"]
    for cell, distance in zip(plan.of(row).cells, (3.0, 1.0, 2.0), strict=True):
        finish(cell, tmp_path, frechet_video=distance)
    *_, best, _, first, _ = (cell.subject.key for cell in plan.of(row).cells)
    assert first == best
    few = replace(plan.rows["dfd_w2s"], settings={"student.sigmas": "1, 0"})  # as a winner in another number of steps
    start = plan.subject(few, 0, 1.0, 1.0)[0].needs["start"].recipe.student
    assert start.lr == 1.5e-4 and start.sigmas == (1.0, 0.0)  # by the sweep of its own steps
    named = ("lcm", "dmd2", "w2s")
    order = [cell.row for cell in bench.results.planned(plan, [plan.rows[name] for name in named])]
    assert order == ["lcm"] * 3 + ["dmd2"] * 3 + ["w2s"] * 5  # row by row, in the order of the call


def test_rows_of_the_ablation_share_the_rates_of_dmd2(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0,))
    first, other = plan.rows["dmd2"], plan.rows["w2s_75"]
    sweep = plan.of(first).cells
    assert [cell.key for cell in plan.of(other).cells] == [cell.key for cell in sweep] and not plan.of(other).test
    for cell, distance in zip(sweep, (2.0, 1.0, 3.0), strict=True):
        finish(cell, tmp_path, frechet_video=distance)
    assert plan.factor(first) == plan.factor(other) == 1.0
    assert plan.of(other).test[0].subject.recipe.student.lr == plan.of(first).test[0].subject.recipe.student.lr
    assert plan.of(other).test[0].subject.recipe.matching.alpha_weak == 0.75
    assert not plan.may_win(other) and plan.may_win(first)
    shared = {row.name: row.rates for row in bench.rows.ROWS if row.rates and row.group == bench.rows.STUDENTS}
    avdm2 = {"avdm2_latent": "avdm2", "avdm2_image": "avdm2"}
    assert shared == {"dmd2_125": "dmd2", "dfd_w2s_score": "dfd_w2s"} | avdm2


def test_the_winner_is_of_validation_and_in_its_own_steps_the_same_cell(bench: Any, tmp_path: Path, costs: Any) -> None:
    named = [row for row in bench.rows.ROWS if row.name in ("dmd2", "w2s", "winner_1", "winner_4")]
    plan = plan_of(bench, tmp_path, costs, named, seeds=(0,))
    one, four = plan.rows["winner_1"], plan.rows["winner_4"]
    assert "not done" in plan.of(one).why and len(plan.of(one).cells) == 6  # the sweeps that decide it
    for name, good in (("dmd2", 5.0), ("w2s", 2.0)):
        for more, cell in zip((1, 0, 2), plan.of(plan.rows[name]).cells[:3], strict=True):
            finish(cell, tmp_path, frechet_video=good + more)
    assert plan.winner().name == "w2s"
    assert [cell.key for cell in plan.of(four).test] == [cell.key for cell in plan.of(plan.rows["w2s"]).test]
    assert plan.of(one).test[0].subject.recipe.student.sigmas == (1.0, 0.0)
    assert plan.of(one).test[0].subject.recipe.student.lr == 1.5e-4


def test_every_recipe_that_is_there_makes_a_cell(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, sweep=(), winner="w2s", seeds=(0,))
    for row in bench.rows.ROWS:
        planned = plan.of(row)
        assert planned.test or row.kind == "model" or "there is no recipe" in planned.why, (row.name, planned.why)
    assert len({cell.key for row in bench.rows.ROWS for cell in plan.of(row).test}) > 30


# ---- the page


def test_what_has_not_run_says_so_and_what_has_prints_mean_spread_and_factor(
    bench: Any, tmp_path: Path, costs: Any
) -> None:
    plan = plan_of(bench, tmp_path / "bench", costs, sweep=(), seeds=(0, 1))
    for name, values in {"w2s": (2.0, 4.0), "dmd2": (8.0, 9.0), "w2s_25": (1.0, 1.0)}.items():
        for cell, value in zip(plan.of(plan.rows[name]).test, values, strict=True):
            finish(cell, plan.out, frechet_video=value, motion=0.2, frechet_frame=value)
    finish(plan.of(plan.rows["w2s_25_gt"]).test[0], plan.out, frechet_video=1.0, motion=0.5, frechet_frame=0.5)
    for cell in plan.of(plan.rows["w2s_75"]).test:
        finish(cell, plan.out, frechet_video=9.0, motion=0.9, frechet_frame=0.5)
    bench.page.write_page(plan, tmp_path / "docs" / "results.md", "Portraits", "a command")
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    line = {row.name: next(x for x in page.splitlines() if f"(`{row.name}`) |" in x) for row in plan.rows.values()
            if row.kind != "model" and row.group != bench.rows.GRID}  # fmt: skip
    assert "3.00 ± 1.00" in line["w2s"] and "| 1 | 1024 | 1.00 |" in line["w2s"] and "avg .8219" in line["w2s"]
    assert "(1 of 2 seeds)" in line["w2s_25_gt"]
    assert "not run" in line["avdm2"] and "not run" in line["teacher"]
    orders = [x for x in page.splitlines() if x.startswith("| W2S, alpha_weak .25, own path (`w2s`) | DMD2, LoRA")]
    assert len(orders) == 1 and orders[0].endswith("| 3.00 ± 1.00 against 8.50 ± 0.500 | agrees |")
    assert page.count("**disagrees** ([why](w2svd.md))") == page.count("**disagrees**") == 1  # motion of alpha_weak .75
    lacking = [
        x for x in page.splitlines() if x.startswith("| W2S, alpha_weak 0.25 (`w2s_25`) | W2S, alpha_weak 0.25, ground")
    ]
    assert len(lacking) == 2 and all(x.endswith("| not all seeds yet |") for x in lacking)  # motion and average
    assert {path.name for path in (tmp_path / "docs" / "results").iterdir()} == {"alpha_weak.png", "grid.png"}


def test_a_row_took_what_it_started_from_too(bench: Any, tmp_path: Path) -> None:
    first, then = cell_of(bench).subject, cell_of(bench, {"student.lr": "1e-5"}).subject
    whole = replace(then, needs={"start": first, "model.path": cell_of(bench, {"seed": "7"}).subject})
    for subject, seconds, peak, adopted in ((first, 8.0, 9, True), (whole, 3.0, 5, False)):
        subject.place(tmp_path).mkdir(parents=True)
        rows = [{"step": step, "seconds": seconds} for step in (1, 2)]
        (subject.place(tmp_path) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        bench.cells.note_usage(subject, tmp_path, peak, True, adopted)
    assert [one.key for one in bench.cells.course(whole)] == [first.key, whole.key]
    every = first.recipe.train.log_every
    assert bench.cells.spent(whole, tmp_path) == {"train_seconds": 22.0 * every, "peak_memory": 9, "adopted": True}


# ---- the command


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--rows", "dmd"), "did you mean dmd2"),
        (("--size", "large", "--rows", "image_28"), "--size small may have it"),
        (("--rows", "image_teacher"), "built on it, such as image_dmd2"),
        (("--winner", "winner_4"), "no row winner_4"),
        (("--winner", "teacher"), "no row teacher"),
    ],
)
def test_an_unknown_row_is_one_sentence(tmp_path: Path, words: tuple[str, ...], hint: str) -> None:
    found = command(tmp_path / "bench", *words)
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and hint in found.stderr


@pytest.mark.slow
def test_a_real_cell_runs_once_is_adopted_and_stands_in_the_table(bench: Any, tmp_path: Path) -> None:
    out, row = tmp_path / "bench", ("--rows", "w2s", "--seeds", "0", "--clips", "50", "--sweep", "--jobs", "1")
    first = command(out, *row)
    assert first.returncode == 0, first.stdout + first.stderr
    (cell,) = [json.loads(path.read_text()) for path in (out / "small" / "cells").glob("*.json")]
    assert cell["steps"] == 3 and cell["train_flops"] > 1e9 and cell["train_seconds"] > 0
    assert cell["peak_memory"] > 1e8 and cell["model_calls"] == 4
    assert set(bench.page.METRICS) - {"identity"} <= set(cell["values"])
    assert "w2svd_core.train" in first.stdout and "measure.py" in first.stdout
    again = command(out, *row)
    assert again.returncode == 0 and "$" not in again.stdout
    shutil.rmtree(out / "small" / "cells")
    other = command(tmp_path / "other", *row, "--adopt", str(out / "small" / "runs"), "--minutes", "0")
    assert "adopted" in other.stdout and "$" not in other.stdout and "at least 1 cells have not run" in other.stdout
    page = (out / "docs" / "results.md").read_text()
    third = command(tmp_path / "third", *row, "--docs", str(out / "docs"))
    assert "1 cells are known" in third.stdout and "$" not in third.stdout
    assert (out / "docs" / "results.md").read_text() == page
