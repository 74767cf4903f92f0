"""Shapes within a pixel budget, the nearest of them, and lengths that a latent can have."""

from __future__ import annotations

import pytest

from w2svd_core.data.buckets import Plan, nearest, shapes
from w2svd_core.errors import UserError
from w2svd_core.geometry import LatentGeometry
from w2svd_core.settings import Data

WAN = LatentGeometry(channels=16, space=8, time=4, patch=2)
WIDE = {"frames": 81, "height": 480, "width": 832, "fps": 16.0}


@pytest.mark.parametrize(
    ("height", "width", "cell"), [(480, 832, 16), (832, 480, 16), (704, 1280, 32), (512, 512, 16), (32, 32, 8)]
)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
def test_shapes_stay_within_the_budget(height: int, width: int, cell: int, count: int) -> None:
    found = shapes(height, width, cell, count)
    assert found[0] == (height, width) and 1 <= len(found) <= count and len(set(found)) == len(found)
    for h, w in found:
        assert h % cell == 0 and w % cell == 0 and h * w <= height * width
        assert h * (w + cell) > height * width  # no wider one would do
        assert max(h / w, w / h) <= max(16 / 9, width / height, height / width) + 1e-6


def test_a_few_shapes_spread_over_the_aspects() -> None:
    assert shapes(480, 832, 16, 2) == [(480, 832), (832, 480)]
    third = shapes(480, 832, 16, 3)[2]
    assert 0.95 < third[1] / third[0] < 1.05
    assert len(shapes(32, 32, 8, 64)) == 3  # there are no more


def test_a_picture_goes_to_the_nearest_aspect() -> None:
    among = shapes(480, 832, 16, 3)
    assert nearest(1080, 1920, among) == (480, 832)
    assert nearest(1920, 1080, among) == (832, 480)
    assert nearest(7, 7, among) == among[2]
    assert nearest(1, 5000, among) == (480, 832)
    assert nearest(100, 100, [(20, 10), (10, 20)]) == (20, 10)  # as near: the first


@pytest.mark.parametrize(
    ("frames", "least", "has", "used"),
    [
        (81, 0, 500, 81), (81, 0, 81, 81), (81, 0, 80, 0), (81, 17, 80, 77), (81, 17, 17, 17), (81, 17, 16, 0),
        (81, 18, 20, 0), (81, 18, 21, 21), (81, 1, 3, 1), (81, 1, 0, 0),
    ],
)  # fmt: skip
def test_lengths(frames: int, least: int, has: int, used: int) -> None:
    plan = Plan.of(Data(**{**WIDE, "frames": frames, "min_frames": least}), WAN)
    assert plan.length(has) == used
    if used:
        WAN.latent_shape(used, *plan.shape(1000, 1000))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"data\.min_frames is 85, more than data\.frames 81"):
        Plan.of(Data(**WIDE, min_frames=85), WAN)
    with pytest.raises(UserError, match=r"data\.height is 488 px.*use 480"):
        Plan.of(Data(**{**WIDE, "height": 488}), WAN)
