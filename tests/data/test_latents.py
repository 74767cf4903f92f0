"""The latent cache: made once for the same clips, made again when they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from w2svd_core.assembly import bundled_encoders
from w2svd_core.data.encoder_source import LoadedEncoders
from w2svd_core.data.latents import LatentSet, load_latents
from w2svd_core.data.portraits import render_folder
from w2svd_core.files import read_safetensors
from w2svd_core.settings import Data


@pytest.fixture(scope="module")
def encoders() -> LoadedEncoders:
    return bundled_encoders()


def load(folder: Path, encoders: LoadedEncoders) -> tuple[LatentSet, list[str]]:
    """The latents of a folder of clips of 5 frames, 32 x 32 px, and what was told while they were made."""
    told: list[str] = []
    settings = Data(folder=str(folder), frames=5, height=32, width=32, fps=8.0, cache=str(folder.parent / "cache"))
    return load_latents(settings, encoders, lambda what, *_: told.append(what)), told


def test_a_clip_in_another_subfolder_is_another_clip(tmp_path: Path, encoders: LoadedEncoders) -> None:
    folder = tmp_path / "clips"
    render_folder(folder, 2, 0, 5, 32, 32, 8.0)
    first, told = load(folder, encoders)
    again, silence = load(folder, encoders)
    assert told == ["encoding clips"] and silence == []
    assert torch.equal(first.latents, again.latents) and first.captions == again.captions
    assert torch.equal(first.condition.fields["text"], again.condition.fields["text"])
    (folder / "more").mkdir()
    for suffix in ("mp4", "txt"):
        (folder / f"0000001.{suffix}").rename(folder / "more" / f"0000001.{suffix}")
    moved, told = load(folder, encoders)
    assert told == ["encoding clips"] and torch.equal(first.latents, moved.latents)
    caches = sorted((tmp_path / "cache").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    names = [json.loads(read_safetensors(path)[1]["clips"]) for path in caches]
    assert names == [["0000000.mp4", "0000001.mp4"], ["0000000.mp4", "more/0000001.mp4"]]
