"""AVDM2's style transfer: an image model of toned pictures moves the student's colours, and the clips go on moving."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

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
def test_a_toned_image_model_tones_the_student_and_leaves_it_its_motion(style: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = style.transfer(tmp_path)
    assert style.off_tone(found.after) < 0.7 * style.off_tone(found.before)
    data, before, after = (style.motion(video) for video in found.columns().values())
    assert max(0.85 * before, 0.7 * data) < after < 1.3 * data, (data, before, after)
