"""How a model is sampled: by its own file's schedule, unless the command line says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from w2svd_core import sample, train
from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Architecture
from w2svd_core.config import load_recipe
from w2svd_core.data.portraits import render_folder
from w2svd_core.data.video import read_video
from w2svd_core.errors import guarded
from w2svd_core.files import write_safetensors
from w2svd_core.flow import sigma_list
from w2svd_core.generation import Way
from w2svd_core.lora_metadata import LoraMetadata, Schedule

Asked = Callable[..., tuple[Way, str]]
FOUR = (1.0, 0.857143, 0.666667, 0.4, 0.0)
TWO = (1.0, 0.6, 0.0)
STUDENT = (Schedule(FOUR, "renoise", 3.0), Schedule(TWO, "euler"))
FLOW = (Schedule(sigma_list(12, 2.0), "euler", 2.0, 2.5),)
BY_HAND = (Schedule((1.0, 0.7, 0.3, 0.0), "euler", None, 2.5),)


@pytest.fixture
def asked(capsys: pytest.CaptureFixture[str]) -> Asked:
    """The way that is taken and what stderr says, for schedules of a file, settings of the command line and steps."""

    def ask(method: str, schedules: tuple[Schedule, ...], steps: int | None = None, **given: str) -> tuple[Way, str]:
        settings = {key.replace("__", "."): value for key, value in given.items()}
        about = LoraMetadata(method, schedules, "WanTransformer3DModel", "0" * 64)
        way = sample.student_way(load_recipe("portraits", settings), settings, about, steps)
        return way, capsys.readouterr().err

    return ask


def test_a_student_is_sampled_as_its_file_says(asked: Asked) -> None:
    assert asked("w2s", STUDENT) == (Way("generator", FOUR, "renoise"), "")
    assert asked("w2s", STUDENT, steps=2) == (Way("generator", TWO, "euler"), "")
    way, err = asked("w2s", STUDENT, steps=3)
    assert way == Way("generator", sigma_list(3, 3.0), "renoise") and "trained for 4 or 2 steps by renoise" in err
    way, err = asked("w2s", STUDENT, student__sampler="euler")
    assert way == Way("generator", FOUR, "euler") and "not for 4 by euler" in err
    way, err = asked("w2s", (STUDENT[1],), student__sigmas="1,0.5,0")  # the recipe's sampler is another
    assert way == Way("generator", (1.0, 0.5, 0.0), "euler") and "at sigmas 1, 0.5, 0" in err
    assert asked("w2s", STUDENT, teacher__steps="9", teacher__shift="9", teacher__guidance_scale="9")[0].sigmas == FOUR


def test_a_model_of_flow_matching_is_sampled_as_its_file_says(asked: Asked) -> None:
    own = Way("generator", sigma_list(12, 2.0), "euler", 2.5)
    assert asked("flow_matching", FLOW) == (own, "")  # the recipe says 28 steps, shift 3 and guidance 1.5
    assert asked("flow_matching", FLOW, steps=12) == (own, "")


@pytest.mark.parametrize("how", [{"steps": 5}, {"teacher__steps": "5"}, {"steps": 5, "teacher__steps": "7"}])
def test_a_model_of_flow_matching_takes_any_number_of_steps(asked: Asked, how: dict[str, Any]) -> None:
    assert asked("flow_matching", FLOW, **how) == (Way("generator", sigma_list(5, 2.0), "euler", 2.5), "")


def test_a_model_of_flow_matching_takes_what_the_command_line_says(asked: Asked) -> None:
    assert asked("flow_matching", FLOW, teacher__guidance_scale="1")[0].guidance_scale == 1
    assert asked("flow_matching", FLOW, teacher__guidance_scale="1")[1] == ""
    way, err = asked("flow_matching", FLOW, teacher__shift="5")
    assert way.sigmas == sigma_list(12, 5.0) and "the model is meant for 12 steps by euler" in err
    way, err = asked("flow_matching", FLOW, steps=4, student__sampler="renoise")
    assert way == Way("generator", sigma_list(4, 2.0), "renoise", 2.5) and "not for 4 by renoise" in err
    way, err = asked("flow_matching", FLOW, student__sigmas="1,0.5,0")
    assert way.sigmas == (1.0, 0.5, 0.0) and len(err.splitlines()) == 1


def test_a_schedule_without_a_shift_says_nothing_of_other_steps(asked: Asked) -> None:
    assert asked("flow_matching", BY_HAND) == (Way("generator", BY_HAND[0].sigmas, "euler", 2.5), "")
    way, err = asked("flow_matching", BY_HAND, steps=2)
    assert way.sigmas == sigma_list(2, sample.USUAL_SHIFT) and "not for 2 by euler" in err


@pytest.mark.parametrize("method", ["distribution_matching", "flow_matching"])
def test_a_file_of_others_is_sampled_as_the_recipe_says(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"method": method, "teacher.shift": "2", "student.sigmas": "1,0.6,0", "student.sampler": "euler"}
    way = sample.student_way(load_recipe("portraits", given), given, None, None)
    assert way.sigmas == TWO and way.sampler == "euler" and capsys.readouterr().err == ""


# ---- the whole way, with a tiny teacher


SIZE = ["--data.frames", "5", "--data.height", "32", "--data.width", "32"]
MORE = ["--prompt", "talking", "--seed", "7"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random teacher and four clips."""
    folder, family = tmp_path_factory.mktemp("sample"), backbone("wan")
    torch.manual_seed(0)
    model = family.build(Architecture(heads=1, head_dim=16, ffn_dim=32, layers=1, text_dim=64))
    torch.nn.init.normal_(model.get_parameter("proj_out.weight"), std=0.1)
    write_safetensors(folder / "teacher.safetensors", family.native_state(model), family.native_metadata(model))
    render_folder(folder / "clips", 4, 0, 5, 32, 32, 8.0)
    return folder


def trained(place: Path, name: str, *more: str) -> Path:
    """A run of one update."""
    tiny = [
        *SIZE, "--model.path", str(place / "teacher.safetensors"), "--data.folder", str(place / "clips"),
        "--data.cache", str(place / "cache"), "--student.rank", "2", "--critic.rank", "2", "--critic.warmup", "0",
        "--critic.updates", "1", "--train.steps", "1", "--train.batch", "2", "--train.lr_decay", "constant",
        "--student.lr", "0.01", "--student.ema", "0", "--evaluate.clips", "0", "--train.tracker", "none",
    ]  # fmt: skip
    assert train.main([*tiny, *more, "--out", str(place / name)]) == 0
    return place / name


def test_run_and_file_of_flow_matching_give_the_same_clip(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = ["--teacher.steps", "3", "--teacher.shift", "2", "--teacher.guidance_scale", "2.5"]
    run = trained(place, "flow", "--method", "flow_matching", *schedule)
    file = run / "student" / "student_comfyui.safetensors"
    base = [*SIZE, "--model.path", str(place / "teacher.safetensors")]
    sources = {"run": [str(run)], "file": [str(file), *base], "five": [str(file), *base, "--steps", "5"]}
    clips = {}
    for name, source in sources.items():
        capsys.readouterr()
        assert sample.main([*source, *MORE, "--out", str(place / f"{name}.mp4")]) == 0
        out, err = capsys.readouterr()
        assert err == "" and (f"{5 if name == 'five' else 3} steps") in out
        clips[name] = read_video(place / f"{name}.mp4")
    assert np.array_equal(clips["run"], clips["file"]) and not np.array_equal(clips["run"], clips["five"])


def test_a_lora_of_a_recipe_that_is_not_bundled_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from w2svd_core.evaluate import usual_clips

    run = trained(place, "graph run", "--name", "graph")
    file = run / "student" / "student_comfyui.safetensors"
    asked = [str(file), *SIZE, "--model.path", str(place / "teacher.safetensors"), *MORE, "--out", str(place / "g.mp4")]
    capsys.readouterr()
    assert sample.main(asked) == 0
    assert "made by a recipe graph, which is not bundled; taking portraits" in capsys.readouterr().err
    assert sample.main([*asked, "--recipe", "portraits"]) == 0 and capsys.readouterr().err == ""
    assert (usual_clips(run, {}), usual_clips(run, {"data.folder": "portraits"})) == (50, 512)


def test_own_clips_do_not_change_the_bundled_teacher(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--model.path", "bundled", "--data.frames", "5")
    capsys.readouterr()
    trained(place, "bundled", *small)
    assert "warning: model.path bundled is the small teacher of drawn portraits, which" in capsys.readouterr().err


def test_a_lora_of_a_base_in_another_precision_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(place, "bf16", "--model.precision", "bf16")
    file = run / "student" / "student_diffusers.safetensors"
    asked = [str(file), *SIZE, "--model.path", str(place / "teacher.safetensors"), *MORE, "--out", str(place / "b.mp4")]
    capsys.readouterr()
    assert guarded(lambda: sample.main(asked)) == 2
    err = capsys.readouterr().err
    assert "on a base in bf16 and this one is in fp32" in err and "with --model.precision bf16" in err
    assert guarded(lambda: sample.main([*asked, "--model.precision", "bf16"])) == 0
    assert capsys.readouterr().err == ""
