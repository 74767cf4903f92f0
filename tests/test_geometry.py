"""The size of a clip as the size of a latent, and sizes that no latent has."""

from __future__ import annotations

import re

import pytest
import torch

from w2svd_core.data.codec import PortraitCodec
from w2svd_core.errors import UserError
from w2svd_core.geometry import LatentGeometry

WAN = LatentGeometry(channels=16, space=8, time=4, patch=2)


@pytest.mark.parametrize(
    ("clip", "latent"),
    [
        ((81, 480, 832), (16, 21, 60, 104)),
        ((1, 480, 832), (16, 1, 60, 104)),  # the first frame has a latent frame of its own
        ((5, 16, 16), (16, 2, 2, 2)),  # the smallest: one token
    ],
)
def test_a_clip_has_its_latent(clip: tuple[int, int, int], latent: tuple[int, ...]) -> None:
    assert WAN.latent_shape(*clip) == latent


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        ((80, 480, 832), "data.frames is 80, but this model takes 1 + 4 k frames; use 77"),
        ((4, 480, 832), "use 1"),
        ((0, 480, 832), "data.frames is 0, but this model takes 1 + 4 k frames; use 1"),
        ((81, 488, 832), "data.height is 488 px, but this model takes multiples of 16; use 480"),
        ((81, 480, 8), "data.width is 8 px, but this model takes multiples of 16; use 16"),
    ],
)
def test_a_size_that_does_not_fit_is_told_the_nearest_one_that_does(clip: tuple[int, int, int], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        WAN.latent_shape(*clip)


def test_without_patches_any_latent_size_fits() -> None:
    assert LatentGeometry(channels=4, space=8, time=1).latent_shape(7, 72, 8) == (4, 7, 9, 1)


def test_the_codec_makes_what_its_geometry_says() -> None:
    codec = PortraitCodec()
    latents = codec.encode(torch.zeros(2, 3, 9, 16, 24))
    assert latents.shape == (2, *codec.geometry.latent_shape(9, 16, 24))
    assert codec.decode(latents).shape == (2, 3, 9, 16, 24)
