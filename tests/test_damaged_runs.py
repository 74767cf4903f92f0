"""Runs that lost a part, and places that are none: a sentence, and what is left stays as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from w2svd_core import train
from w2svd_core.config import load_recipe, recipe_to_yaml
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors
from w2svd_core.run import RunFolder, place_for

SMALL = (
    "portraits", "--train.steps", "2", "--train.batch", "2", "--data.clips", "8", "--data.frames", "5",
    "--evaluate.clips", "0", "--critic.warmup", "1", "--critic.updates", "1", "--student.rank", "4", "--critic.rank",
    "4", "--train.tracker", "none", "--train.checkpoint_every", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main([*SMALL, "--out", str(place)]) == 0
    return place


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file() and p.suffix != ".lock"}


def lose_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def lose_checkpoints_and_student(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "student")


def block_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("a folder that can't be read; permissions hold back no superuser")


def empty_recipe(run: Path) -> None:
    (run / "recipe.yaml").write_text("\n")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lose_checkpoints, r"checkpoints holds nothing to go on from, and 3 rounds were trained; put it back"),
        (lose_checkpoints_and_student, r"checkpoints holds nothing to go on from, and 3 rounds were trained"),
        (block_checkpoints, r"checkpoints can't be read: Not a directory"),
        (empty_recipe, r"recipe\.yaml is empty; put the run's recipe back"),
    ],
)
def test_a_run_that_lost_a_part_is_refused_and_left_alone(run: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(run)
    before = contents(run)
    with pytest.raises(UserError, match=told):
        train.main(["--resume", str(run)])
    assert contents(run) == before


def test_lines_of_metrics_that_are_none_do_not_count(run: Path) -> None:
    rows = RunFolder(run).metrics()
    with (run / "metrics.jsonl").open("ab") as stream:
        stream.write(b'\xff\xfe\x00garbage\n{"loss": 1}\n12\n{"step": "x"}\n')
    assert RunFolder(run).metrics() == rows
    assert train.main(["--resume", str(run)]) == 0
    assert RunFolder(run).metrics() == rows


def test_a_place_with_checkpoints_and_no_recipe_is_no_new_run(run: Path) -> None:
    (run / "recipe.yaml").unlink()
    before = contents(run)
    with pytest.raises(UserError, match=r"has lost its recipe\.yaml; put it back, or name another --out"):
        train.main([*SMALL, "--out", str(run)])
    assert contents(run) == before


def test_a_name_that_safetensors_can_not_read_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no UTF-8 name"):
        place_for(load_recipe("portraits", {}), tmp_path / os.fsdecode(b"\xff\xfe"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--from", ""), r"--from: it is empty; name a folder"),
        (("--out", ""), r"--out: it is empty; name a folder"),
        (("--from", "one", "--start", "two"), r"--from and --start are the same setting"),
        (("--data.folder", ""), r"data\.folder is empty"),
        (("--model.path", ""), r"model\.path is empty"),
        (("--frame_matching.model", ""), r"frame_matching\.model is empty"),
        (("--student.lr", "0"), r"student\.lr 0 trains nothing"),
        (("--from", "nowhere"), r"start nowhere is not a run folder \(it has no recipe\.yaml\)"),
    ],
)
def test_a_place_that_is_none_is_one_sentence(
    words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        train.main([*SMALL, *words])
    assert not list(tmp_path.iterdir())


def test_a_file_or_folder_in_the_others_place_says_what_to_name(run: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; name the \.safetensors file in it"):
        read_safetensors(run)
    lora = run / "student" / "student_comfyui.safetensors"
    with pytest.raises(
        UserError, match=r"is a file; name the run folder that it lies in, or a student's LoRA in student\.init"
    ):
        train.main([*SMALL, "--from", str(lora)])


def test_the_only_checkpoint_that_is_broken_has_no_round_before_it(run: Path) -> None:
    older, newest = sorted((run / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(UserError, match=r"000003.* remove it, and the run goes on from the one before it"):
        train.main(["--resume", str(run)])
    newest.unlink()
    older.write_bytes(older.read_bytes()[:100])
    with pytest.raises(UserError, match=r"000002.* is not a whole checkpoint of .*; train anew in another folder"):
        train.main(["--resume", str(run)])


def test_what_saves_memory_may_change_in_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(str(run / "recipe.yaml"), {})
    changed = {
        "model.gradient_checkpointing": "true", "matching.batched_scores": "false", "data.workers": "1",
        "train.steps": "3", "guard.every": "1", "guard.clips": "50", "teacher.steps": "2",
    }  # fmt: skip
    later = load_recipe(str(run / "recipe.yaml"), changed)
    assert later.model.gradient_checkpointing != recipe.model.gradient_checkpointing
    (run / "recipe.yaml").write_text(recipe_to_yaml(later))
    assert train.main(["--resume", str(run)]) == 0
    assert RunFolder(run).newest_step() == 4 and "going on after step 3 of 4" in capsys.readouterr().err
    other = load_recipe(str(run / "recipe.yaml"), {"guard.clips": "52"})  # its looks would not compare
    (run / "recipe.yaml").write_text(recipe_to_yaml(other))
    with pytest.raises(UserError, match=r"guard\.clips 50, .* says 52"):
        train.main(["--resume", str(run)])


def test_a_run_goes_on_without_the_lora_that_it_began_with(run: Path, tmp_path: Path) -> None:
    lora = Path(shutil.copy(run / "student" / "student_comfyui.safetensors", tmp_path / "begun.safetensors"))
    place = tmp_path / "second"
    assert train.main([*SMALL, "--student.init", str(lora), "--out", str(place)]) == 0
    lora.unlink()
    recipe = load_recipe(str(place / "recipe.yaml"), {"train.steps": "3"})
    (place / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    assert train.main(["--resume", str(place)]) == 0
    assert RunFolder(place).newest_step() == 4


def test_two_runs_of_one_name_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, place = load_recipe("portraits", {}), tmp_path / "same-second"
    monkeypatch.setattr("w2svd_core.run.place_for", lambda recipe, out: place)  # both have looked before either wrote
    RunFolder.create(recipe, None)
    before = contents(place)
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder.create(load_recipe("portraits", {"seed": "1"}), None)
    assert contents(place) == before


def test_a_preview_that_can_not_be_made_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise MemoryError("no room for the codec")

    monkeypatch.setattr("w2svd_core.job.preview", full)
    assert train.main([*SMALL, "--train.sample_every", "1", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "clips of round 1 could not be shown (no room for the codec); nothing else is lost" in said
    assert RunFolder(tmp_path / "run").newest_step() == 3


def test_a_look_that_fails_loses_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("w2svd_core.guard.measured", full)
    words = ("--train.checkpoint_every", "0", "--guard.every", "1", "--guard.clips", "50", "--teacher.steps", "2")
    with monkeypatch.context() as patch:
        patch.setattr(
            "w2svd_core.guard.teacher_values", lambda *_: {"motion": 1.0, "saturation": 1.0, "diversity": 1.0}
        )
        with pytest.raises(MemoryError):
            train.main([*SMALL, *words, "--out", str(tmp_path / "run")])
    run = RunFolder(tmp_path / "run")
    assert run.newest_step() == 2  # the second round is the student's first
    monkeypatch.undo()
    again = Path(shutil.copytree(run.path, tmp_path / "again"))
    assert train.main(["--resume", str(again)]) == 0
    looks = [row["step"] for row in RunFolder(again).metrics() if "guard/score" in row]
    assert looks == [2, 3]  # the one that failed, too
    (run.path / "recipe.yaml").write_text(
        recipe_to_yaml(load_recipe(str(run.path / "recipe.yaml"), {"guard.every": "0"}))
    )
    assert train.main(["--resume", str(run.path)]) == 0 and run.newest_step() == 3


def test_what_a_second_stage_lacks_is_told_before_the_first(tmp_path: Path) -> None:
    words = ("--first", "portraits_teacher", "--student.init", str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match=r"none\.safetensors is not there"):
        train.main([*SMALL, *words, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_ctrl_c_beside_the_rounds_says_how_to_go_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("w2svd_core.job.carry_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--resume", str(run)])
    assert f"go on with --resume {run}" in capsys.readouterr().out
