"""Runs that lost a part, and places that are none: a sentence, and what is left stays as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from w2svd_core import train
from w2svd_core.config import load_recipe
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


def test_ctrl_c_beside_the_rounds_says_how_to_go_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("w2svd_core.job.carry_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--resume", str(run)])
    assert f"go on with --resume {run}" in capsys.readouterr().out
