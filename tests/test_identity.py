"""Likeness of a clip to the first frame that it was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from w2svd_core.data.portraits import portrait_from_seed, render
from w2svd_core.errors import UserError
from w2svd_core.metrics.identity import identity
from w2svd_core.metrics.networks import FeatureNetwork, Videos, load_network, read_videos

FIRST = 2_960_000  # never seen by the networks
COUNT = 24


@pytest.fixture(scope="module")
def clips() -> Videos:
    return np.stack([render(portrait_from_seed(FIRST + i), 9, 32, 32, 8.0) for i in range(COUNT)])


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return load_network("frame")


@pytest.fixture(scope="module")
def unrelated(network: FeatureNetwork) -> Tensor:
    others = np.stack([render(portrait_from_seed(FIRST + 500 + i), 5, 32, 32, 8.0) for i in range(48)])
    return read_videos(network, others).features.mean(0)


def test_own_and_other_first_frames(clips: Videos, network: FeatureNetwork, unrelated: Tensor) -> None:
    own = identity(clips, clips[:, 0], unrelated, network)
    others = np.stack([identity(clips, np.roll(clips[:, 0], k, 0), unrelated, network) for k in range(1, 6)])
    assert own.shape == (COUNT,) and own.mean() > 0.9 and own.min() > 0.7
    assert abs(others.mean()) < 0.12 and (others < own).all()


def test_a_still_is_itself_at_any_size(clips: Videos, network: FeatureNetwork, unrelated: Tensor) -> None:
    still = np.repeat(clips[:3, :1], 9, axis=1)
    np.testing.assert_allclose(identity(still, clips[:3, 0], unrelated, network), 1, atol=1e-6)
    large = clips[:3, 0].repeat(2, axis=1).repeat(2, axis=2)
    assert identity(still, large, unrelated, network).min() > 0.97  # resizing blurs a little


def test_the_clip_s_own_first_frame_does_not_count(clips: Videos, network: FeatureNetwork, unrelated: Tensor) -> None:
    swapped = clips[:4].copy()
    swapped[:, 0] = 0
    args = clips[:4, 0], unrelated, network
    np.testing.assert_allclose(identity(swapped, *args), identity(clips[:4], *args), atol=1e-6)


def test_it_falls_as_a_person_turns_into_another(clips: Videos, network: FeatureNetwork, unrelated: Tensor) -> None:
    kept = clips[:8]
    morphed = kept.copy()
    morphed[:, 8] = clips[8:16, 8]  # of the two later frames that are read, the last shows somebody else
    a, b = (identity(x, kept[:, 0], unrelated, network) for x in (kept, morphed))
    assert (b < a).all() and 0.3 < b.mean() < 0.7


def test_it_is_the_formula(clips: Videos, network: FeatureNetwork, unrelated: Tensor) -> None:
    frames = read_videos(network, clips[:1]).features - unrelated  # frames 0, 4 and 8
    frames = frames / frames.norm(dim=1, keepdim=True)
    expected = float((frames[1:] @ frames[0]).mean())
    assert identity(clips[:1], clips[:1, 0], unrelated, network)[0] == pytest.approx(expected, abs=1e-6)


def test_bad_input_is_refused(clips: Videos, network: FeatureNetwork) -> None:
    with pytest.raises(UserError, match="24 clips but 23 first frames"):
        identity(clips, clips[1:, 0], torch.zeros(48), network)
    with pytest.raises(UserError, match="needs clips of at least 5 frames, not 4"):
        identity(clips[:, :4], clips[:, 0], torch.zeros(48), network)
