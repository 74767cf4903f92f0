from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from w2svd_core.data import portraits
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.metrics.corruptions import CORRUPTIONS, SIGNED, corrupt
from w2svd_core.metrics.frechet import FeatureStats, frechet_distance
from w2svd_core.metrics.networks import (
    ASSETS,
    FEATURES,
    FILES,
    FeatureNetwork,
    Kind,
    Videos,
    load_network,
    read_videos,
    to_unit,
)

KINDS: tuple[Kind, ...] = ("video", "frame")


def _corrupted(renders: Videos, name: str, amount: float) -> Videos:
    generator = torch.Generator().manual_seed(5)
    clips = [CORRUPTIONS[name](clip, amount, generator) for clip in to_unit(renders)]
    return (torch.stack(clips).permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8).numpy()


def test_the_bundled_files_are_small() -> None:
    for kind in KINDS:
        assert (ASSETS / FILES[kind]).stat().st_size < 1_000_000
        assert sum(p.numel() for p in load_network(kind).parameters()) < 300_000


@pytest.fixture(scope="module")
def clean(renders: Videos) -> dict[Kind, FeatureStats]:
    return {kind: FeatureStats.of(read_videos(load_network(kind), renders).features) for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("video", name) for name in ("blur", "noise", "saturate", "freeze", "damp", "flicker", "jitter")]
    + [("frame", name) for name in ("blur", "noise", "saturate")],
)
def test_the_distance_rises_with_what_is_wrong(
    renders: Videos, clean: dict[Kind, FeatureStats], kind: Kind, name: str
) -> None:
    distances = [0.0]
    for amount in (0.25, 0.5, 1.0):
        features = read_videos(load_network(kind), _corrupted(renders, name, amount)).features
        distances.append(frechet_distance(clean[kind], FeatureStats.of(features)))
    assert all(less < more for less, more in itertools.pairwise(distances))


def test_any_size_and_length_is_read(renders: Videos) -> None:
    network = load_network("video")
    portrait = portraits.portrait_from_seed(2_950_000)
    large = portraits.render(portrait, frames=17, height=96, width=96)[None]
    near, far = (read_videos(network, clip).features[0] for clip in (large, renders[1:2]))
    here = read_videos(network, renders[:1]).features[0]
    assert torch.dist(here, near) < 0.5 * torch.dist(here, far)
    assert read_videos(network, renders[:2, :5]).features.shape == (2, FEATURES)
    assert read_videos(load_network("frame"), renders[:2]).features.shape == (2 * 5, FEATURES)


def test_batches_do_not_matter(renders: Videos) -> None:
    network = load_network("video")
    one, many = (read_videos(network, renders[:6], batch=batch).features for batch in (1, 4))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_folding_batch_norms_keeps_the_function(kind: Kind) -> None:
    torch.manual_seed(0)
    network = FeatureNetwork(kind, {"glasses": ("yes", "no")}, batch_norm=True)
    x = torch.rand(4, 5, 3, 32, 32) if kind == "video" else torch.rand(4, 3, 32, 32)
    network.train()(x)  # running statistics that are not the initial ones
    network.eval()
    before = network(x)
    plain = network.folded()
    torch.testing.assert_close(plain(x).features, before.features, rtol=1e-4, atol=1e-5)
    plain.scale_features(3.0)
    torch.testing.assert_close(plain(x).features, before.features * 3, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain(x).logits, before.logits, rtol=1e-4, atol=1e-5)


def test_corruptions_leave_a_clip_alone_at_zero(renders: Videos) -> None:
    clip = to_unit(renders[:1])[0]
    for function in CORRUPTIONS.values():
        torch.testing.assert_close(function(clip, 0.0, torch.Generator()), clip, rtol=0, atol=1e-5)


def test_corruptions_are_reproducible_and_named(renders: Videos) -> None:
    clip = to_unit(renders[:1])[0]
    first, amounts = corrupt(clip, torch.Generator().manual_seed(3), share=1.0)
    second, _ = corrupt(clip, torch.Generator().manual_seed(3), share=1.0)
    assert torch.equal(first, second)
    assert (amounts != 0).all() and amounts.abs().max() <= 1
    assert {name for name, amount in zip(CORRUPTIONS, amounts, strict=True) if amount < 0} <= set(SIGNED)
    _, only = corrupt(clip, torch.Generator().manual_seed(3), share=1.0, only=("blur",))
    assert int((only != 0).sum()) == 1


def test_bad_clips_are_refused() -> None:
    network = load_network("video")
    with pytest.raises(UserError, match=r"float64 of shape \(1, 17, 64, 64, 3\)"):
        read_videos(network, np.zeros((1, 17, 64, 64, 3)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one clip"):
        read_videos(network, np.zeros((0, 17, 64, 64, 3), dtype=np.uint8))
    with pytest.raises(UserError, match="have 3 frames; at least 4"):
        read_videos(network, np.zeros((1, 3, 64, 64, 3), dtype=np.uint8))


def test_broken_network_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        load_network("video", tmp_path / "missing")
    shutil.copy(ASSETS / FILES["frame"], tmp_path / FILES["video"])
    with pytest.raises(UserError, match="is not a video feature network"):
        load_network("video", tmp_path)
    tensors, metadata = read_safetensors(ASSETS / FILES["frame"])
    write_safetensors(tmp_path / FILES["frame"], tensors, metadata | {"attributes": '{"hat": ["yes", "no"]}'})
    with pytest.raises(UserError, match="other portrait attributes"):
        load_network("frame", tmp_path)
    tensors.pop("to_features.bias")
    write_safetensors(tmp_path / "b" / FILES["frame"], tensors, metadata)
    with pytest.raises(UserError, match="does not fit"):
        load_network("frame", tmp_path / "b")
