"""Differences of clips in pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from w2svd_core.errors import UserError
from w2svd_core.metrics.pixels import pixel_difference, pixel_diversity


def random_clips(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 5, 8, 8, 3), dtype=np.uint8)


def test_diversity_is_the_root_mean_square_over_pairs() -> None:
    clips = random_clips(4)
    squares = [np.square(a.astype(float) - b).mean() for a, b in itertools.combinations(clips, 2)]
    assert pixel_diversity(clips) == pytest.approx(np.sqrt(np.mean(squares)))
    assert pixel_diversity(np.repeat(clips[:1], 3, axis=0)) == 0


def test_difference_is_of_each_clip_and_its_own_reference() -> None:
    clips = random_clips(2)
    assert pixel_difference(clips, clips) == 0
    assert pixel_difference(np.zeros_like(clips), np.full_like(clips, 3)) == pytest.approx(3)


def test_what_can_not_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2"):
        pixel_diversity(random_clips(1))
    with pytest.raises(UserError, match="one shape"):
        pixel_difference(random_clips(2), random_clips(3))
