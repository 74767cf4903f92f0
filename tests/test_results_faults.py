"""The results table when things go wrong: rates that diverge, defaults that changed, starts that nobody planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_parts import cell_of, finish, plan_of

from w2svd_core.config import recipe_to_yaml


def test_a_factor_that_diverges_is_the_worst_and_no_end(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0,))
    row, workers = plan.rows["w2s"], bench.work.Workers(tmp_path, 1)
    half, one, twice = plan.of(row).cells
    finish(half, tmp_path, frechet_video=3.0)
    finish(one, tmp_path, frechet_video=2.0)
    assert "not done" in plan.of(row).why
    bench.cells.note_usage(twice.subject, tmp_path, None, False, diverged=True)
    assert workers.next_job([twice], set()) is None
    assert plan.factor(row) == 1.0 and plan.of(row).test[0].subject.key == one.subject.key
    page = bench.page.sweeps(plan)
    assert "| 3.00 | 2.00 | diverged | 1 |" in page and "There is no winner yet" in page
    bench.cells.note_usage(one.subject, tmp_path, None, False, diverged=True)
    one.place(tmp_path).unlink()
    half.place(tmp_path).unlink()
    bench.cells.note_usage(half.subject, tmp_path, None, False, diverged=True)
    plan = plan_of(bench, tmp_path, costs, seeds=(0,))
    for factor in (0.25, 0.125, 0.0625, 0.03125):  # lower ones may hold
        assert plan.factors(row)[0] == factor and "not done" in plan.of(row).why
        bench.cells.note_usage(plan.sweep_cell(row, factor).subject, tmp_path, None, False, diverged=True)
    assert "diverged with every factor" in plan.of(row).why
    two = plan_of(bench, tmp_path, costs, [row, plan.rows["dmd2"]], seeds=(0,))
    for distance, cell in zip((2.0, 1.0, 3.0), two.of(two.rows["dmd2"]).cells, strict=True):
        finish(cell, tmp_path, frechet_video=distance)
    assert two.winner().name == "dmd2"  # a row that no rates train does not stand in the way


def test_the_end_of_a_diverged_training_is_known_by_its_sentence(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, workers = cell_of(bench).subject, bench.work.Workers(tmp_path, 1)
    subject.place(tmp_path).mkdir(parents=True)
    said = iter(("student had 20 non-finite updates in a row after update 3; start again", "No space left on device"))

    def fails(key: str, command: object, given: str) -> tuple[int, int]:
        with workers.log(key).open("a") as log:
            log.write(f"error: {next(said)}\n")
        return 2, 1

    monkeypatch.setattr(workers, "process", fails)
    workers.log("x").parent.mkdir()
    for diverged in (True, False):  # of another fault, behind the first one's words
        workers.train(subject)
        assert bench.cells.has_diverged(subject, tmp_path) == diverged


def test_a_training_of_another_default_is_not_measured_as_if_it_were_this_one(bench: Any, tmp_path: Path) -> None:
    cell = cell_of(bench)
    place = cell.subject.place(tmp_path)
    place.mkdir(parents=True)
    bench.cells.note_usage(cell.subject, tmp_path, 5, True)
    (place / "recipe.yaml").write_text(recipe_to_yaml(cell.subject.recipe))
    assert bench.cells.is_trained(cell.subject, tmp_path)
    then = cell.subject.recipe
    then = then.model_copy(update={"critic": then.critic.model_copy(update={"updates": 4})})
    (place / "recipe.yaml").write_text(recipe_to_yaml(then))
    assert bench.cells.stale(cell.subject, tmp_path) == "critic.updates"
    assert not bench.cells.is_trained(cell.subject, tmp_path)
    workers = bench.work.Workers(tmp_path, 1)
    workers.train(cell.subject)
    assert cell.subject.key in workers.failed


def test_a_start_that_keeps_its_rates_is_not_swept(bench: Any, tmp_path: Path, costs: Any) -> None:
    plan = plan_of(bench, tmp_path, costs, seeds=(0,))
    cells = plan.of(plan.rows["dfd_ill"]).cells
    assert {cell.row for cell in cells} == {"dfd_ill"}
    start = cells[-1].subject.needs["start"]
    assert plan.of(plan.rows["dmd2_ill"]).test[0].subject.key == start.key  # what the cure began with has a row
    assert bench.page.updates(bench.page.Line(plan.rows["dfd_ill"], plan.of(plan.rows["dfd_ill"]))) == "120 + 120"


def test_a_start_without_a_checkpoint_is_trained_again(
    bench: Any, tmp_path: Path, costs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, workers = plan_of(bench, tmp_path, costs, seeds=(0,)), bench.work.Workers(tmp_path, 1)
    (cell,) = plan.of(plan.rows["dfd_ill"]).cells
    start = cell.subject.needs["start"]
    place = start.place(tmp_path)
    bench.cells.note_usage(start, tmp_path, 5, True)
    assert workers.next_job([cell], set()) is start  # its folder was deleted
    place.mkdir()
    (place / "recipe.yaml").write_text(recipe_to_yaml(start.recipe))
    assert bench.cells.is_trained(start, tmp_path) and workers.next_job([cell], set()) is start
    asked: list[Any] = []
    monkeypatch.setattr(workers, "process", lambda key, command, given: asked.append(command) or (0, 5))
    workers.train(start)
    place.mkdir()
    (place / "recipe.yaml").write_text(recipe_to_yaml(start.recipe))
    assert not bench.cells.is_trained(start, tmp_path)  # nobody starts from it half-trained
    assert "--resume" not in asked[0] and (tmp_path / "runs" / f"{start.key}.old" / "recipe.yaml").is_file()
    bench.cells.note_usage(start, tmp_path, 5, True)
    checkpoints = place / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "000120.safetensors").touch()
    assert workers.next_job([cell], set()) is cell.subject


def test_every_claim_has_a_page(bench: Any) -> None:
    docs = Path(__file__).parents[1] / "docs"
    assert all((docs / claim.page).is_file() for claim in bench.claims.CLAIMS)


def test_a_winner_that_is_named_is_planned_with_what_decides_it(bench: Any, tmp_path: Path, costs: Any) -> None:
    for name, sweeps in (("dfd_w2s", {"w2s", "dfd_w2s"}), ("w2s_25", {"dmd2"}), ("dmd2_ill", set())):
        plan = plan_of(bench, tmp_path, costs, seeds=(0,), winner=name)
        found = {row.name for row in plan.before(plan.rows["winner_1"])}
        assert found == sweeps, name


def test_the_last_checkpoint_stays_for_those_who_start_from_it(bench: Any, tmp_path: Path) -> None:
    subject = cell_of(bench).subject
    folder = subject.place(tmp_path) / "checkpoints"
    folder.mkdir(parents=True)
    for step in (20, 40):
        (folder / f"{step:06d}.safetensors").touch()
    bench.cells.thin(subject, tmp_path)
    assert [path.stem for path in folder.iterdir()] == ["000040"]
