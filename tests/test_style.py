"""AVDM2's style transfer: an image model of toned pictures moves the student's colours, and the clips go on moving."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from w2svd_core import train
from w2svd_core.files import read_safetensors

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def style(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("style")
    sys.modules.pop("style", None)


def test_the_tone_keeps_the_light_and_motion_is_flow(style: Any) -> None:
    clips = style.videos(range(4), 5, 8.0)
    brown = style.toned(clips)
    light = [(video.movedim(1, -1) @ style.LUMA) for video in (clips, brown)]
    assert (light[0] - light[1]).abs().mean() < 0.02
    assert style.off_tone(brown) < 0.01 < 0.05 < style.off_tone(clips)
    assert abs(style.motion(brown) / style.motion(clips) - 1) < 0.1
    assert style.motion(clips[:, :, :1].expand_as(clips)) == 0
    picture = style.sheet({"clips": clips, "toned": brown}, rows=2)
    assert picture.ndim == 3 and picture.shape[2] == 3


@pytest.mark.slow
def test_an_image_unet_judges_the_student_of_an_animatediff(
    style: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["--train.steps", "1", "--train.batch", "2", "--data.clips", "4", "--evaluate.clips", "0", "--out"]
    image, motion, student = (tmp_path / name for name in ("image", "motion", "student"))
    assert train.main(["portraits_image_unet", *short, str(image)]) == 0
    assert train.main(["portraits_motion_unet", *short, str(motion)]) == 0
    models = [str(run / "student" / "student_model_comfyui.safetensors") for run in (motion, image)]
    named = ["--model.path", models[0], "--frame_matching.model", models[1], "--critic.warmup", "1"]
    assert train.main(["portraits_avdm2_unets", *named, *short, str(student)]) == 0
    for name, value in {"TRAINED": range(8), "HELD_OUT": range(2_000_000, 2_000_002), "IMAGE_UPDATES": 1}.items():
        monkeypatch.setattr(style, name, value)
    pair = replace(style.unets(image, student), rounds=2)
    found = style.transfer(pair, tmp_path / "toned")
    assert found.before.shape == found.after.shape == found.data.shape == (2, 3, 9, 32, 32)
    assert found.after.isfinite().all()
    lora = read_safetensors(student / "student" / "student_comfyui.safetensors")[0]
    assert any(tensor.count_nonzero() for name, tensor in lora.items() if "up" in name)  # what `before` has begun with


@pytest.mark.slow
def test_a_toned_image_model_tones_the_student_and_leaves_it_its_motion(style: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = style.transfer(style.bundled(), tmp_path)
    assert style.off_tone(found.after) < 0.7 * style.off_tone(found.before)
    data, before, after = (style.motion(video) for video in found.columns().values())
    assert max(0.85 * before, 0.7 * data) < after < 1.3 * data, (data, before, after)
