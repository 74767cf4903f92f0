"""The quality guard: the teacher's band, looks at the student, the best one kept, an early end, a run resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from kind import Programs, Recipes
from torch import Tensor

from w2svd_core import train as door
from w2svd_core.assembly import Job, bundled_encoders
from w2svd_core.config import check_recipe, load_recipe
from w2svd_core.distillation import Distillation
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors
from w2svd_core.guard import QualityGuard, keep_look, kept_looks, kept_teacher, take_best
from w2svd_core.guard_settings import Guard
from w2svd_core.hashing import tensors_hash
from w2svd_core.looks import Look, band, change, looks_in, out_in_a_row, outside, score, share, shares
from w2svd_core.lora_files import base_hash
from w2svd_core.report import report_text
from w2svd_core.run import RunFolder
from w2svd_core.settings import Recipe
from w2svd_core.starting import start_from
from w2svd_core.trainer import Interrupted, train
from w2svd_core.watch import Terminal

TEACHER = {"motion": 0.4, "saturation": 60.0, "sharpness": 10.0, "diversity": 0.5}
BAND = band(Guard())
GOOD, FROZEN = {**TEACHER, "motion": 0.38}, {**TEACHER, "motion": 0.2, "saturation": 69.0, "frozen_share": 0.5}
ANYTHING = {
    "guard.motion_low": 0.0,
    "guard.motion_high": 1000.0,
    "guard.saturation": 1000.0,
    "guard.diversity_low": 0.0,
}
NOTHING = {"guard.motion_low": 1.0, "guard.motion_high": 1.0, "guard.saturation": 0.0, "guard.diversity_low": 1.0}


def looked(step: int, values: dict[str, float]) -> Look:
    return Look.of(step, values, TEACHER, BAND)


# ---- numbers


def test_the_band_is_shares_of_the_teachers() -> None:
    assert dict(BAND) == {"motion": (0.85, 1.15), "saturation": (0.9, 1.1), "diversity": (0.85, math.inf)}
    found = shares({"motion": 0.3, "saturation": 60, "diversity": 0.6, "flicker": 1}, TEACHER, BAND)
    assert found == pytest.approx({"motion": 0.75, "saturation": 1, "diversity": 1.2})
    assert outside(found, BAND) == ("motion",)
    assert outside({"motion": 1.2, "saturation": 0.85, "diversity": 0.8}, BAND) == ("motion", "saturation", "diversity")
    assert outside({"motion": 0.85, "saturation": 1.1}, BAND) == ()  # its edges belong to it
    assert outside({"motion": math.nan}, BAND) == ("motion",)
    assert (share(0, 0), share(2, 0), share(1, 4)) == (1, math.inf, 0.25)


def test_the_score_is_the_frechet_distance_or_the_distance_from_the_teacher() -> None:
    assert score({**TEACHER, "frechet_video": 7.0}, TEACHER) == 7
    assert score(TEACHER, TEACHER) == 0
    assert score(FROZEN, TEACHER) == pytest.approx((0.5 + 0.15) / 4)
    assert score({**FROZEN, "flicker": 99.0}, TEACHER) == score(FROZEN, TEACHER)
    assert score({"frechet_video": math.nan}, TEACHER) == math.inf


def test_a_line_when_it_leaves_and_when_it_comes_back() -> None:
    good, frozen = looked(1, GOOD), looked(2, FROZEN)
    assert change(None, good, BAND) == "" == change(good, looked(2, TEACHER), BAND) == change(frozen, frozen, BAND)
    left = "guard, round 2: motion left the teacher's band (0.5 of the teacher's, wanted 0.85 to 1.15); saturation left"
    assert change(good, frozen, BAND).startswith(left) and change(None, frozen, BAND).startswith(left)
    back = change(frozen, looked(3, {**TEACHER, "saturation": 69.0, "diversity": 0.3}), BAND)
    assert back == (
        "guard, round 3: diversity left the teacher's band (0.6 of the teacher's, wanted 0.85 or more); "
        "motion is back in the teacher's band (1 of the teacher's, wanted 0.85 to 1.15)"
    )


def test_looks_are_counted_from_what_was_logged() -> None:
    looks = [looked(step, values) for step, values in enumerate([FROZEN, GOOD, FROZEN, FROZEN], 1)]
    rows = [{"step": float(look.step), "student/loss": 1.0, **look.logs(), "seconds": 1.0} for look in looks]
    found = looks_in([{"step": 0.0, "student/loss": 1.0}, *rows], TEACHER, BAND)
    assert found == looks and rows[0]["guard/motion_of_teacher"] == 0.5 and rows[0]["guard/out"] == 2
    assert [out_in_a_row(looks[:end]) for end in range(5)] == [0, 1, 0, 1, 2]


# ---- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guard.seed": 100}, "portraits that data.clips 512 trains on"),
        ({"guard.seed": 1_000_100}, "portraits that evaluate.seed 1000000 measures with"),
        ({"guard.seed": 500_000}, "portraits that evaluate.seed 1000000 measures with"),  # its statistics' portraits
        ({"guard.clips": 48}, "too few for a Fréchet distance"),
        ({"guard.clips": 51}, "guard.clips 51 is odd"),
        ({"data.frames": 4, "evaluate.clips": 0}, "too short to measure motion"),
        ({"method": "flow_matching", "student.kind": "full"}, "method flow_matching has none"),
        ({"guard.every": 0, "guard.keep": "best"}, "need looks; set guard.every"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_recipe({"guard.every": 10, **settings}, "in a test")


def test_what_fits() -> None:
    for settings in ({}, {"data.folder": "mine", "guard.clips": 2, "guard.seed": 0}, {"guard.seed": 2_000_000}):
        assert check_recipe({"guard.every": 10, **settings}, "in a test").guard.every == 10
    assert load_recipe("portraits_long").guard == Guard() and Guard().every == 0


# ---- looks at a tiny model, on clips of the user's own


@dataclass
class Ears(Terminal):
    """A terminal that keeps what was said, and asks to stop after a round."""

    stop_after: int = -1
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(quiet=True)
        self._done = 0

    def step(self, done: int, *rest: Any) -> None:
        self._done = done

    def stop(self) -> bool:
        return self._done == self.stop_after

    def say(self, line: str) -> None:
        self.said.append(line)


Start = Callable[..., tuple[Job, QualityGuard, Ears]]


@pytest.fixture
def start(new_program: Programs) -> Start:
    """The parts of a run in a folder, as they go on from its newest checkpoint."""

    def begin(run: RunFolder, stop_after: int = -1) -> tuple[Job, QualityGuard, Ears]:
        recipe, ears = run.recipe(), Ears(stop_after)
        program = new_program(recipe)
        job = Job(program.model, bundled_encoders(), program.data, program, program.student)
        step, tensors = run.latest_checkpoint()
        if tensors:
            program.load_tensors(tensors)
        guard = QualityGuard(recipe, run, job, step, ears)
        if not guard.enough:
            train(program, run, recipe.train, start=step, look=guard.look, watch=ears)
        return job, guard, ears

    return begin


def own(new_recipe: Recipes, **settings: Any) -> Recipe:
    base = {
        "data.folder": "mine",
        "data.frames": 9,
        "guard.every": 1,
        "guard.clips": 6,
        "student.lr": 0.02,
        "teacher.steps": 4,
    }
    return new_recipe({**base, "train.steps": 5, "train.checkpoint_every": 2, **settings})


def numbers(run: RunFolder) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.metrics()]


def weights(job: Job) -> dict[str, Tensor]:
    found: dict[str, Tensor] = job.program.tensors()  # type: ignore[assignment]
    return found


def test_looks_come_when_they_are_due_and_change_nothing(
    start: Start, new_recipe: Recipes, new_program: Programs, tmp_path: Path
) -> None:
    recipe = own(new_recipe, **{"guard.every": 2, "train.log_every": 3})
    run = RunFolder.create(recipe, tmp_path / "run")
    job, guard, _ = start(run)
    assert [look.step for look in guard.looks] == [
        3,
        5,
        6,
    ]  # round 1 is the critic's alone; the end is always looked at
    assert [row["step"] for row in run.metrics()] == [3, 5, 6]
    plain = new_program(recipe)
    train(plain, RunFolder.create(recipe, tmp_path / "plain"), recipe.train, watch=Ears())
    found, expected = weights(job), plain.tensors()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_own_clips_have_a_score_of_their_own(start: Start, new_recipe: Recipes, tmp_path: Path) -> None:
    run = RunFolder.create(own(new_recipe), tmp_path / "run")
    _, guard, _ = start(run)
    assert (
        guard.asked.captions == ("row 0", "row 0", "row 1", "row 1", "row 2", "row 2") and guard.asked.reference is None
    )
    assert (
        guard.teacher == kept_teacher(run)
        and set(TEACHER) < set(guard.teacher)
        and "frechet_video" not in guard.teacher
    )
    for look in guard.looks:
        parts = [abs(look.values[name] / guard.teacher[name] - 1) for name in TEACHER]
        assert look.score == pytest.approx(sum(parts) / 4) and look.score > 0
    text = report_text(run, run.recipe(), [], [], [])
    assert "the first clips of the training, which are not held out" in text and "mean distance of motion" in text


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("method", ["distribution_matching", "consistency"])
def test_the_best_look_is_kept(
    start: Start, new_program: Programs, new_recipe: Recipes, tmp_path: Path, kind: str, method: str
) -> None:
    recipe = own(new_recipe, method=method, **{"student.kind": kind, "student.ema": 0.5, "guard.keep": "best"})
    run = RunFolder.create(recipe, tmp_path / "run")
    job, guard, _ = start(run)
    best = min(guard.looks, key=lambda look: look.score)
    kept = kept_looks(run)[-1]
    tensors, header = read_safetensors(kept.path)
    assert guard.best == kept and kept.step == best.step and kept.values == best.values
    assert header["step"] == str(best.step) and float(header["score"]) == best.score
    found = take_best(run, job.student)
    assert found == kept and tensors.keys() == job.student.learned().keys()
    assert all(torch.equal(value, tensors[name]) for name, value in job.student.learned().items())
    assert all(torch.equal(value, tensors[name]) for name, value in job.student.parameters.items())
    if isinstance(job.program, Distillation):  # a run that starts from this one gets that student, too
        other = new_program(recipe)
        said = start_from(other, str(run.path), base_hash(other.model.base_state()))
        assert f"of round {kept.step}, the best look" in said
        late = f"critic of round {job.program.rounds} (critic.warmup" in said
        assert late == (kept.step != job.program.rounds)
        assert all(torch.equal(value, tensors[name]) for name, value in other.student.learned().items())
    again, ended = QualityGuard(recipe, run, job, job.program.rounds, Ears()).look(job.program.rounds)
    assert again["guard/score"] == best.score and not ended  # the same weights make the same numbers


def test_of_older_looks_the_last_before_a_checkpoint_stays(start: Start, new_recipe: Recipes, tmp_path: Path) -> None:
    run = RunFolder.create(own(new_recipe, **{"train.steps": 1}), tmp_path / "run")
    job, _, _ = start(run)
    for path in (run.path / "guard").glob("best-*"):
        path.unlink()
    left = []
    for step in range(1, 7):
        keep_look(run, looked(step, GOOD), job.student)
        (run.path / "guard" / "best-000001 (copy).safetensors").touch()  # of a file manager
        left.append([best.step for best in kept_looks(run)])
        if step % 3 == 0:
            run.save_checkpoint(step, lambda: {"done": torch.zeros(1)})
    assert left == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 3, 5], [2, 3, 6]]  # after 2 the run itself had saved, too
    assert run.kept_steps() == [3, 6]


# ---- the end, and the way back


def test_a_run_out_of_the_band_ends_as_a_whole_one(start: Start, new_recipe: Recipes, tmp_path: Path) -> None:
    run = RunFolder.create(own(new_recipe, **NOTHING, **{"guard.stop_after": 2}), tmp_path / "run")
    job, guard, ears = start(run)
    assert run.newest_step() == 3 < job.program.rounds and guard.enough  # after the critic's round and two looks
    assert len(ears.said) == 2 and "motion left the teacher's band" in ears.said[0]
    assert ears.said[1] == "guard, round 3: 2 looks in a row out of the band end the run"
    before = numbers(run)
    _, again, _ = start(run)
    assert again.enough and numbers(run) == before  # it stays ended
    text = report_text(run, run.recipe(), [], [], [])
    assert "The run was ended after round 3: 2 looks in a row were out of the band." in text
    assert "motion in 2 of 2 looks (after 2, 3; furthest" in text


def test_a_run_inside_the_band_goes_to_its_end(start: Start, new_recipe: Recipes, tmp_path: Path) -> None:
    run = RunFolder.create(own(new_recipe, **ANYTHING, **{"guard.stop_after": 1}), tmp_path / "run")
    job, guard, ears = start(run)
    assert run.newest_step() == job.program.rounds == 6 and not guard.enough and ears.said == []
    assert "No look was out of the teacher's band." in report_text(run, run.recipe(), [], [], [])


@pytest.mark.parametrize("stop", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_stopped_run_makes_the_same_looks_and_keeps_the_same_best(
    start: Start, new_recipe: Recipes, tmp_path: Path, stop: int
) -> None:
    recipe = own(new_recipe, **NOTHING, **{"guard.stop_after": 5, "student.ema": 0.5})
    whole, run = RunFolder.create(recipe, tmp_path / "whole"), RunFolder.create(recipe, tmp_path / "run")
    expected, first, _ = start(whole)
    with pytest.raises(Interrupted):
        start(run, stop)
    (teacher,) = (run.path / "guard").glob("teacher.json")
    stamp = teacher.stat().st_mtime_ns
    found, second, _ = start(run)
    assert teacher.stat().st_mtime_ns == stamp  # measured once
    assert numbers(run) == numbers(whole) and second.looks == first.looks and second.enough and first.enough
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in other)
    kept, wanted = kept_looks(run)[-1], kept_looks(whole)[-1]
    assert (kept.path.name, kept.step, kept.values) == (wanted.path.name, wanted.step, wanted.values)
    assert tensors_hash(read_safetensors(kept.path)[0]) == tensors_hash(read_safetensors(wanted.path)[0])


def test_a_look_beyond_the_checkpoint_is_made_again(start: Start, new_recipe: Recipes, tmp_path: Path) -> None:
    run = RunFolder.create(own(new_recipe), tmp_path / "run")
    job, guard, _ = start(run)
    keep_look(run, looked(7, GOOD), job.student)  # a power cut came before its checkpoint
    run.log(7, looked(7, GOOD).logs())
    step, _ = run.latest_checkpoint()
    again = QualityGuard(run.recipe(), run, job, step, Ears())
    assert again.looks == guard.looks and again.best is not None and again.best.step < 7
    assert not (run.path / "guard/best-000007.safetensors").exists()


# ---- through the door, on validation portraits


@pytest.mark.slow
def test_the_door_ends_early_saves_the_best_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = [
        "portraits", "--train.steps", "3", "--train.batch", "2", "--data.clips", "16", "--data.frames", "5",
        "--critic.warmup", "0", "--critic.updates", "1", "--student.rank", "4", "--critic.rank", "4",
        "--evaluate.clips", "0", "--train.tracker", "none", "--teacher.steps", "2", "--student.sigmas", "1,0.5,0",
        "--data.cache", str(tmp_path / "cache"),
        "--guard.every", "1", "--guard.clips", "50", "--guard.saturation", "0", "--guard.stop_after", "2",
        "--guard.keep", "best", "--out", str(out),
    ]  # fmt: skip
    assert door.main(arguments) == 0
    said = capsys.readouterr()
    run = RunFolder.open(out)
    best = kept_looks(run)[-1]
    assert run.newest_step() == 2 and [row["guard/score"] for row in run.metrics()] == [
        row["guard/frechet_video"] for row in run.metrics()
    ]
    assert "saturation left the teacher's band" in said.err and "2 looks in a row" in said.err
    assert f"the student of round {best.step}, the best look, is the one that is saved" in said.err
    assert "Done. Look at" in said.out and (out / "student/student_comfyui.safetensors").is_file()
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "## Quality guard" in text and "video Fréchet distance to validation portraits" in text
    assert "plots/guard.png" in text and (out / "plots/guard.png").is_file()
    rows, student = run.metrics(), tensors_hash(read_safetensors(out / "student/student_comfyui.safetensors")[0])
    capsys.readouterr()
    assert door.main(["--resume", str(out)]) == 0
    assert "guard.stop_after has ended this run; to train longer, raise it" in capsys.readouterr().err
    assert run.metrics() == rows
    assert tensors_hash(read_safetensors(out / "student/student_comfyui.safetensors")[0]) == student


def test_a_lost_best_look_is_not_replaced_by_the_last_student(
    start: Start, new_recipe: Recipes, tmp_path: Path
) -> None:
    run = RunFolder.create(own(new_recipe, **{"guard.keep": "best"}), tmp_path / "run")
    job, guard, _ = start(run)
    assert guard is not None and take_best(run, job.student) is not None
    for best in kept_looks(run):
        best.path.write_bytes(best.path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"is not a whole look that the guard has kept; remove it, and set guard\.keep"):
        kept_looks(run)
    for path in (run.path / "guard").glob("best-*"):
        path.unlink()
    with pytest.raises(UserError, match=r"has lost its best look, which guard\.keep best hands out"):
        take_best(run, job.student)
    with pytest.raises(UserError, match=r"has lost its best look"):
        QualityGuard(run.recipe(), run, job, job.program.rounds, Ears())
