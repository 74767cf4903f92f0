from __future__ import annotations

import sys

import numpy as np
import pytest

from w2svd_core.errors import UserError
from w2svd_core.metrics.motion import clip_motion, frozen_share
from w2svd_core.metrics.networks import Videos


def _sliding(pixels: int, side: int = 64, frames: int = 6) -> Videos:
    """A smooth texture that slides to the right."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.integers(40, 216, (side // 8, side // 8)), np.ones((8, 8)))
    for axis in (0, 1):
        coarse = np.mean([np.roll(coarse, k, axis) for k in range(-4, 5)], axis=0)
    frame = np.repeat(coarse[..., None], 3, axis=-1).astype(np.uint8)
    return np.stack([np.roll(frame, k * pixels, axis=1) for k in range(frames)])[None]


def test_still_clips_do_not_move(renders: Videos) -> None:
    still = np.repeat(renders[:4, :1], 17, axis=1)
    motion = clip_motion(still)
    assert motion.max() == 0
    assert frozen_share(motion) == 1


def test_a_sliding_texture_moves_by_its_pixels() -> None:
    assert clip_motion(_sliding(1))[0] == pytest.approx(1, rel=0.2)
    assert clip_motion(_sliding(2))[0] == pytest.approx(2, rel=0.2)


def test_motion_does_not_depend_on_the_size() -> None:
    large = np.repeat(np.repeat(_sliding(1), 2, axis=2), 2, axis=3)  # 2 px at 128 px are 1 px at 64 px
    assert clip_motion(large)[0] == pytest.approx(clip_motion(_sliding(1))[0], rel=0.1)


def test_portraits_move_and_slow_ones_move_less(renders: Videos) -> None:
    motion = clip_motion(renders[:16])
    assert frozen_share(motion) == 0
    slow = np.repeat(renders[:16, :9], 2, axis=1)  # every frame twice
    assert clip_motion(slow).mean() < 0.7 * motion.mean()


def test_a_missing_opencv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="pip install opencv-python-headless"):
        clip_motion(_sliding(1))
