"""Preparing for a model of each kind, with tiny encoders of the real classes, from folders and from single files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from kind import Kind, Tiny
from kinds import filed, piped
from tiny_wan import FRAMES, PROMPTS
from video_files import write

from w2svd_core.data.codec import to_signed
from w2svd_core.data.encoder_source import EncoderSource, empty_condition, null_condition
from w2svd_core.data.prepare import prepare
from w2svd_core.data.shard_sets import ShardSet
from w2svd_core.data.video import read_video
from w2svd_core.data.wanted import prepared_set
from w2svd_core.settings import Data

CPU = torch.device("cpu")


def quiet(what: str, done: int, count: int) -> None:
    """Progress that nobody sees."""


def source_of(kind: Kind, files: bool = False) -> EncoderSource:
    assert kind.tiny is not None
    make = kind.tiny().model_of_files if files else kind.tiny().model
    settings = make(family=kind.family, first_frame=bool(kind.picture), text_precision="fp32")
    return kind.backbone.encoder_source(settings, CPU)


def clips_of(folder: Path, tiny: Tiny) -> Data:
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


@piped
def test_a_preparation_holds_what_the_encoders_make(kind: Kind, tmp_path: Path) -> None:
    assert kind.tiny is not None
    tiny, source = kind.tiny(), source_of(kind)
    settings = clips_of(tmp_path / "clips", tiny)
    prepare(settings, source, quiet)
    data = prepared_set(settings, source, source.geometry, quiet)
    assert isinstance(data, ShardSet) and source.starts == bool(kind.picture)
    prompts, codec = source.load_prompts(), source.load_codec()
    start = source.load_start(codec)
    for number in range(2):
        caption = " ".join(PROMPTS[number].split())
        video = to_signed(read_video(Path(settings.folder) / f"{number}.mkv")[None])
        latents, condition = data.batch([number], CPU)
        with torch.no_grad():
            assert torch.equal(latents, codec.encode(video))
            wanted = dict(prompts.encode([caption]).fields)
            wanted |= {} if start is None else start.encode(video[:, :, :1], FRAMES, [caption])
        assert condition.fields.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(condition.fields[name], value, atol=1e-5, rtol=1e-5)
    assert latents.shape[1:] == source.geometry.latent_shape(FRAMES, *tiny.size)
    assert prompts.width == source.width
    for name, value in null_condition(prompts).fields.items():
        torch.testing.assert_close(data.null.fields[name], value)
    for name, value in empty_condition(prompts).fields.items():
        torch.testing.assert_close(data.empty.fields[name], value)
        avoids = bool(kind.backbone.facts(kind.new()).negative_prompt)  # what nobody's clip is called
        assert not (avoids and name == "text" and torch.equal(value, data.null.fields[name]))
    model = kind.backbone.load(tiny.folder, torch.float32)
    kind.backbone.check_fit(model, source.geometry, source.width)
    if "guidance" not in kind.backbone.facts(model).takes:
        kind.backbone.check_condition(model, condition)


@piped
def test_a_fingerprint_is_there_before_anything_is_loaded(kind: Kind) -> None:
    found = source_of(kind).fingerprints()
    assert found == source_of(kind).fingerprints()
    assert found["codec"] and found["text"] and bool(found["start"]) == bool(kind.picture)


@filed
def test_single_files_have_fingerprints_too(kind: Kind) -> None:
    found = source_of(kind, files=True).fingerprints()
    assert found == source_of(kind, files=True).fingerprints() and found.keys() == source_of(kind).fingerprints().keys()
    assert found["codec"] and found["text"] and bool(found["start"]) == bool(kind.picture)
