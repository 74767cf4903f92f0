from __future__ import annotations

import numpy as np
import pytest

from w2svd_core.metrics.appearance import flicker, saturation, sharpness
from w2svd_core.metrics.networks import Videos


def _flat(*colours: tuple[int, int, int]) -> Videos:
    """A clip of flat frames, one colour each."""
    return np.stack([np.full((16, 16, 3), colour, dtype=np.uint8) for colour in colours])[None]


def test_flicker_is_the_second_difference() -> None:
    steady = _flat(*[(k, k, k) for k in (10, 20, 30, 40, 50)])
    assert flicker(steady)[0] == pytest.approx(0, abs=1e-3)
    pulsing = _flat(*[(k, k, k) for k in (10, 20, 10, 20, 10)])
    assert flicker(pulsing)[0] == pytest.approx(20, abs=1e-3)


def test_local_pulsing_counts() -> None:
    clip = np.full((1, 5, 16, 16, 3), 100, dtype=np.uint8)
    clip[:, ::2, :, :8] += 10  # the halves pulse against each other: the frame's mean stands still
    clip[:, 1::2, :, 8:] += 10
    assert flicker(clip)[0] == pytest.approx(20, abs=1e-3)


def test_saturation_is_the_chroma() -> None:
    assert saturation(_flat(*[(200, 100, 50)] * 4))[0] == pytest.approx(150)
    assert saturation(_flat(*[(90, 90, 90)] * 4))[0] == 0


def test_sharpness_falls_with_blur(renders: Videos) -> None:
    soft = (renders[:4].astype(np.uint16) + np.roll(renders[:4], 1, axis=2) + np.roll(renders[:4], 1, axis=3)) // 3
    assert sharpness(soft.astype(np.uint8)).mean() < 0.8 * sharpness(renders[:4]).mean()
    assert sharpness(_flat(*[(1, 2, 3)] * 4))[0] == pytest.approx(0, abs=1e-4)


def test_a_size_that_eight_does_not_divide() -> None:
    clip = np.full((2, 4, 20, 13, 3), 7, dtype=np.uint8)
    assert flicker(clip).shape == (2,)
    assert flicker(clip).max() == pytest.approx(0, abs=1e-3)
