from __future__ import annotations

import numpy as np
import pytest
import torch

from w2svd_core.errors import UserError
from w2svd_core.metrics.diversity import caption_diversity, diversity
from w2svd_core.metrics.frechet import FeatureStats


def _features(count: int) -> torch.Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)


def test_equal_clips_have_none() -> None:
    features = _features(200)
    same = features[:10].repeat_interleave(4, dim=0)
    assert diversity(same, 4, FeatureStats.of(features)) == 0


def test_unrelated_clips_have_about_one_in_any_unit() -> None:
    features = _features(2000)
    one = diversity(features, 4, FeatureStats.of(features))
    assert one == pytest.approx(1, abs=0.07)
    assert diversity(features * 9 + 5, 4, FeatureStats.of(features * 9 + 5)) == pytest.approx(one, rel=1e-6)


def test_half_the_spread_is_half_the_diversity() -> None:
    features = _features(2000)
    data = FeatureStats.of(features)
    centres = torch.randn(500, 12, generator=torch.Generator().manual_seed(1)).repeat_interleave(4, dim=0) * 100
    assert diversity(features * 0.5 + centres, 4, data) == pytest.approx(diversity(features, 4, data) / 2, rel=1e-5)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_groups_that_do_not_fit_are_refused(size: int) -> None:
    with pytest.raises(UserError, match="group"):
        diversity(_features(16), size, FeatureStats.of(_features(100)))


def test_without_a_network_it_is_the_distance_in_levels() -> None:
    levels = [10, 13, 200, 200, 90, 84]  # of three captions, each with two seeds
    clips = np.array(levels, np.uint8)[:, None, None, None, None] * np.ones((1, 5, 32, 24, 3), np.uint8)
    assert caption_diversity(clips, 2) == pytest.approx((3 + 0 + 6) / 3)
    noise = np.random.default_rng(0).integers(0, 256, clips.shape, np.uint8)
    assert 0 < caption_diversity(noise, 2) < 0.8 * np.sqrt(np.mean((noise[0].astype(float) - noise[1]) ** 2))
    with pytest.raises(UserError, match="group"):
        caption_diversity(clips, 4)
