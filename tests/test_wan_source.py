"""Preparing for a Wan of each kind, with tiny encoders of the real classes, from folders and from single files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_wan import FRAMES, KINDS, PROMPTS, TinyWan, tiny_wan
from video_files import write

from w2svd_core.backbones.wan_config import config_at
from w2svd_core.backbones.wan_encoders import load_encoders
from w2svd_core.backbones.wan_source import WanSource
from w2svd_core.backbones.wan_variants import kind_of
from w2svd_core.data.codec import to_unit
from w2svd_core.data.file_prints import print_of_files
from w2svd_core.data.prepare import prepare
from w2svd_core.data.shard_sets import ShardSet
from w2svd_core.data.video import read_video
from w2svd_core.data.wanted import prepared_set
from w2svd_core.errors import UserError
from w2svd_core.settings import Data

CPU = torch.device("cpu")


def quiet(what: str, done: int, count: int) -> None:
    """Progress that nobody sees."""


def source_of(tiny: TinyWan, files: bool = False, **changes: Any) -> WanSource:
    config = config_at(tiny.folder)
    return WanSource(
        tiny.model_of_files() if files else tiny.model(), config, **{"text_dtype": torch.float32, **changes}
    )


def clips_of(folder: Path, tiny: TinyWan) -> Data:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        coarse = rng.integers(0, 256, (FRAMES, 4, 4, 3), dtype=np.uint8)
        video = coarse.repeat(tiny.size[0] // 4, axis=1).repeat(tiny.size[1] // 4, axis=2)
        write(folder / f"{number}.mkv", video, "ffv1", "bgr0", rate=16)
        (folder / f"{number}.txt").write_text(PROMPTS[number])
    height, width = tiny.size
    return Data(
        folder=str(folder), cache=str(folder.parent / "cache"), frames=FRAMES, height=height, width=width, fps=16.0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_preparation_holds_what_the_encoders_make(kind: str, tmp_path: Path) -> None:
    tiny = tiny_wan(kind)
    source = source_of(tiny)
    settings = clips_of(tmp_path / "clips", tiny)
    prepare(settings, source, quiet)
    data = prepared_set(settings, source, source.geometry, quiet)
    assert isinstance(data, ShardSet)
    all_of_them = load_encoders(tiny.model(), kind_of(source.config), source.negative_prompt)
    for number in range(2):
        path = Path(settings.folder) / f"{number}.mkv"
        video = to_unit(read_video(path)[None])
        latents, condition = data.batch([number], CPU)
        wanted = all_of_them.prompts.encode([" ".join(PROMPTS[number].split())]).fields
        with torch.no_grad():
            assert torch.equal(latents, all_of_them.codec.encode(video))
            if all_of_them.start is not None:
                wanted |= all_of_them.start.encode(video[:, :, :1], FRAMES)
        assert condition.fields.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(condition.fields[name], value, atol=1e-5, rtol=1e-5)
    assert latents.shape[1:] == source.geometry.latent_shape(FRAMES, *tiny.size)
    torch.testing.assert_close(data.null.fields["text"], all_of_them.prompts.null().fields["text"])


@pytest.mark.parametrize("kind", KINDS)
def test_single_files_say_the_same_of_a_model(kind: str) -> None:
    tiny = tiny_wan(kind)
    found = source_of(tiny, files=True).fingerprints()
    assert found["codec"] and found["text"] and bool(found["start"]) == (kind != "t2v")
    assert found == source_of(tiny, files=True).fingerprints()


def test_what_a_fingerprint_follows(tmp_path: Path) -> None:
    tiny = tiny_wan("ti2v")
    first = source_of(tiny).fingerprints()
    assert source_of(tiny, first_frame=False).fingerprints() == {**first, "start": ""}
    assert source_of(tiny, text_dtype=torch.bfloat16).fingerprints()["text"] != first["text"]
    large = bytearray(6 << 20)
    path = tmp_path / "weights.safetensors"
    seen = set()
    for place in (None, 3, (1 << 20) + 5, len(large) - 1):  # in the head, in the first piece, in the last
        if place is not None:
            large[place] = 1
        path.write_bytes(large)
        seen.add(print_of_files(path))
    assert len(seen) == 4


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a diffusers folder .* or a \.safetensors file of a Wan model"):
        config_at(tmp_path)
    tiny = tiny_wan("t2v")
    with pytest.raises(UserError, match="the model's VAE is not there"):
        WanSource(tiny.model(path=str(tmp_path)), config_at(tiny.folder)).fingerprints()
