"""A run that was stopped goes on bit for bit as if it had not been."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from kind import Programs, Recipes
from torch import Tensor

from w2svd_core.config import recipe_to_yaml
from w2svd_core.errors import UserError
from w2svd_core.run import KEPT_CHECKPOINTS, RunFolder
from w2svd_core.settings import Train
from w2svd_core.train import main
from w2svd_core.trainer import Interrupted, Program, train

CASES: list[dict[str, Any]] = [
    {},
    {"student.ema": 0.9, "train.lr_decay": "cosine", "train.lr_warmup": 2},
    {
        "student.kind": "full",
        "rollout.source": "noised_data",
        "student.sampler": "euler",
        "student.beta1": 0.9,
    },
    {"student.kind": "full", "student.ema": 0.5, "rollout.reuse": "fresh"},
    {"rollout.reuse": "exit", "matching.guidance_scale": 3.0, "model.gradient_checkpointing": True},
    {"rollout.reuse": "fresh", "rollout.source": "noised_data", "critic.warmup": 4},
    {"method": "flow_matching", "train.steps": 4, "student.kind": "full", "student.ema": 0.9},
    {"method": "consistency", "train.steps": 4, "consistency.target_ema": 0.9, "model.gradient_checkpointing": True},
    {"method": "consistency", "train.steps": 4, "student.kind": "full", "consistency.target_ema": 0.0},
]


class Stopping:
    """A program in which somebody presses Ctrl-C during one round."""

    def __init__(self, program: Program, at: int) -> None:
        self.program, self.at = program, at
        self.rounds, self.tensors, self.load_tensors = program.rounds, program.tensors, program.load_tensors
        self.shown = program.shown

    def round(self, index: int) -> dict[str, float]:
        values = self.program.round(index)
        if index == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return values


class Counting:
    """A program of rounds that only count."""

    rounds = 6
    shown: Mapping[str, str] = {"student/loss": "loss", "critic/loss": "critic"}

    def __init__(self) -> None:
        self.done = torch.zeros(1)

    def round(self, index: int) -> dict[str, float]:
        self.done += 1
        return {"student/loss": float(index)}

    def tensors(self) -> dict[str, Tensor]:
        return {"done": self.done}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.done = tensors["done"].clone()


def rows(run: RunFolder) -> list[dict[str, float]]:
    """The metrics without the clock."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.metrics()]


def go_on(make: Callable[[], Any], run: RunFolder) -> Any:
    """A new program from the newest checkpoint, run to the end."""
    program = make()
    start, tensors = run.latest_checkpoint()
    program.load_tensors(tensors)
    train(program, run, run.recipe().train, start=start)
    return program


def named(value: Any) -> str:
    """The name of a case, or of the round in which it stops."""
    if isinstance(value, int):
        return f"stop{value}"
    return ",".join(f"{key.split('.')[-1]}={setting}" for key, setting in value.items()) or "default"


@pytest.mark.parametrize(("case", "stop"), [({}, 0), *((case, 2) for case in CASES)], ids=named)
def test_a_stopped_run_goes_on_bit_for_bit(
    new_program: Programs, new_recipe: Recipes, tmp_path: Path, case: dict[str, Any], stop: int
) -> None:
    recipe = new_recipe({"train.steps": 3} | case)
    whole, whole_run = new_program(recipe), RunFolder.create(recipe, tmp_path / "whole")
    train(whole, whole_run, recipe.train)

    run = RunFolder.create(recipe, tmp_path / "stopped")
    with pytest.raises(Interrupted) as stopped:
        train(Stopping(new_program(recipe), at=stop), run, recipe.train)
    assert stopped.value.index == stop + 1
    torch.rand(7)  # another process has another global random state
    resumed = go_on(lambda: new_program(run.recipe()), run)

    found, expected = resumed.tensors(), whole.tensors()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert rows(run) == rows(whole_run) and len(rows(run)) == whole.rounds


def test_rounds_after_the_last_checkpoint_are_made_again(
    new_program: Programs, new_recipe: Recipes, tmp_path: Path
) -> None:
    recipe = new_recipe({"train.checkpoint_every": 2, "critic.warmup": 0, "critic.updates": 1})
    whole, whole_run = new_program(recipe), RunFolder.create(recipe, tmp_path / "whole")
    train(whole, whole_run, recipe.train)

    class PowerCut(Exception):
        pass

    run, cut = RunFolder.create(recipe, tmp_path / "cut"), new_program(recipe)
    broken = Stopping(cut, at=-1)
    plain_round = cut.round

    def round_or_cut(index: int) -> dict[str, float]:
        if index == 3:
            raise PowerCut
        values: dict[str, float] = plain_round(index)
        return values

    broken.round = round_or_cut  # type: ignore[method-assign]
    with pytest.raises(PowerCut):
        train(broken, run, recipe.train)
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "student/lo')  # cut off in the middle of a line
    assert len(run.metrics()) == 3
    resumed = go_on(lambda: new_program(recipe), run)
    found, expected = resumed.tensors(), whole.tensors()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert rows(run) == rows(whole_run)


def test_what_a_program_gives_is_all_that_it_needs(new_program: Programs, new_recipe: Recipes) -> None:
    """Straight through memory: no file, another instance, the next round equal."""
    recipe = new_recipe({"student.ema": 0.9})
    first, second = new_program(recipe), new_program(recipe)
    for index in range(3):
        first.round(index)
    second.load_tensors({name: t.clone() for name, t in first.tensors().items()})
    assert first.round(3) == second.round(3)


def test_ctrl_c_saves_the_round_that_was_under_way(tmp_path: Path, new_recipe: Recipes) -> None:
    run, before = RunFolder.create(new_recipe(), tmp_path / "run"), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        train(Stopping(Counting(), at=2), run, Train(checkpoint_every=0))
    step, tensors = run.latest_checkpoint()
    assert stopped.value.index == step == 3 and float(tensors["done"]) == 3
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_bar_shows_what_the_program_names(
    tmp_path: Path, new_program: Programs, new_recipe: Recipes, capfd: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    train(Counting(), run, Train(checkpoint_every=0))
    shown = capfd.readouterr().err
    assert "loss 5" in shown and "critic" not in shown  # it logs no such value
    flow = {"method": "flow_matching", "student.kind": "full"}
    for index, recipe in enumerate([new_recipe({"critic.warmup": 0}), new_recipe(flow)]):
        program = new_program(recipe)
        train(program, RunFolder.create(recipe, tmp_path / str(index)), recipe.train)
        shown = capfd.readouterr().err
        assert program.shown and all(f"{name} " in shown for name in program.shown.values())


def test_ctrl_c_twice_stops_at_once(tmp_path: Path, new_recipe: Recipes) -> None:
    class Impatient(Counting):
        def round(self, index: int) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().round(index)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(Impatient(), RunFolder.create(new_recipe(), tmp_path / "run"), Train())
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_the_last_round_is_the_end(tmp_path: Path, new_recipe: Recipes) -> None:
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    train(Stopping(Counting(), at=5), run, Train(checkpoint_every=0))
    assert run.latest_checkpoint()[0] == 6


def test_checkpoints_logs_and_samples_come_when_they_are_due(tmp_path: Path, new_recipe: Recipes) -> None:
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    sampled: list[int] = []
    logged: list[int] = []
    saved: list[int] = []
    save = run.save_checkpoint
    run.save_checkpoint = lambda step, *a, **k: (saved.append(step), save(step, *a, **k))  # type: ignore[method-assign,assignment,func-returns-value]
    settings = Train(checkpoint_every=4, log_every=3, sample_every=2)
    train(Counting(), run, settings, log=lambda _, step: logged.append(step), on_sample=sampled.append)
    assert saved == [4, 6] and logged == [3, 6] and sampled == [2, 4]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, new_recipe: Recipes) -> None:
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    train(Counting(), run, Train(checkpoint_every=1))
    kept = sorted(path.stem for path in (run.path / "checkpoints").iterdir())
    assert kept == ["000005", "000006"] and len(kept) == KEPT_CHECKPOINTS


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path: Path, new_recipe: Recipes) -> None:
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    train(Counting(), run, Train(checkpoint_every=1), main=False)
    assert [path.name for path in run.path.iterdir()] == ["recipe.yaml"]


def test_a_run_without_a_checkpoint_starts_over(tmp_path: Path, new_recipe: Recipes) -> None:
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    run.log(1, {"student/loss": 1.0})
    assert run.latest_checkpoint() == (0, {}) and run.metrics() == []


def test_the_newest_checkpoint_is_the_one_with_the_highest_number(tmp_path: Path, new_recipe: Recipes) -> None:
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    for step in range(999_999, 1_000_002):  # seven digits come after six
        run.save_checkpoint(step, lambda: {"done": torch.zeros(1)})
    assert run.latest_checkpoint()[0] == 1_000_001


@pytest.mark.parametrize("key", ["model.vae", "model.loras", "student.init", "student.rank"])
def test_files_may_move_and_nothing_else_may_change(key: str, tmp_path: Path, new_recipe: Recipes) -> None:
    value: Any = {"model.loras": ("b.safetensors@0.5",), "student.rank": 3}.get(key, "b.safetensors")
    before, after = (recipe_to_yaml(new_recipe(changes)) for changes in ({}, {key: value}))
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    run.made_of = {"recipe": before, "base": "x", "data": "y"}
    run.save_checkpoint(1, lambda: {"t": torch.zeros(1)})
    run.made_of = {"recipe": after, "base": "x", "data": "y"}
    if key.endswith("rank"):
        with pytest.raises(UserError, match=r"student\.rank .* set it back"):
            run.latest_checkpoint()
    else:
        assert run.latest_checkpoint()[0] == 1


def test_a_checkpoint_of_another_image_model_is_refused(tmp_path: Path, new_recipe: Recipes) -> None:
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    for then, now, fits in (("", "", True), ("a", "a", True), ("", "a", False), ("a", "", False), ("a", "b", False)):
        run.made_of = {"recipe": "", "base": "x", "data": "y"} | ({"models": then} if then else {})
        run.save_checkpoint(1, lambda: {"t": torch.zeros(1)})
        run.made_of = {"recipe": "", "base": "x", "data": "y"} | ({"models": now} if now else {})
        if fits:
            assert run.latest_checkpoint()[0] == 1
        else:
            with pytest.raises(UserError, match=r"with another image model than frame_matching\.model names now"):
                run.latest_checkpoint()


HOLDER = """
import sys, time
from pathlib import Path
from w2svd_core.files import atomic_write
from w2svd_core.run import RunFolder

place = Path(sys.argv[1])
with RunFolder(place).held(), atomic_write(place / "checkpoints" / "000002.safetensors"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_is_one_process_at_a_time_and_free_when_that_dies(tmp_path: Path, new_recipe: Recipes) -> None:
    run = RunFolder.create(new_recipe(), tmp_path / "run")
    run.save_checkpoint(1, lambda: {"a": torch.zeros(1)})
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"another process trains in .* or delete .*training\.lock"), run.held():
            pass
        other.kill()
    files = run.path / "checkpoints"
    assert len(list(files.iterdir())) == 2  # one is whole, the other one the killed process began
    for _ in range(2):
        with run.held():
            assert [file.name for file in files.iterdir()] == ["000001.safetensors"]


def test_a_file_system_without_locks_takes_a_run(
    tmp_path: Path, new_recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, taken = RunFolder.create(new_recipe(), tmp_path / "run"), []

    def none(_lock: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with run.held():
        taken.append(run.path)
    assert taken == [run.path]


def test_a_second_training_of_the_same_run_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["--train.steps", "1", "--train.batch", "2", "--data.clips", "16", "--evaluate.clips", "0"]
    small += ["--critic.warmup", "0", "--critic.updates", "1", "--train.tracker", "none", "--student.rank", "4"]
    assert main(["portraits", *small, "--critic.rank", "4", "--out", str(run)]) == 0
    with RunFolder.open(run).held(), pytest.raises(UserError, match="another process trains in"):
        main(["--resume", str(run)])
    assert main(["--resume", str(run)]) == 0
