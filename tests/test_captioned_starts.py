"""A model that reads first frame and caption together: encoded once for each pair, prepared and asked alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from video_files import counting, write

from w2svd_core.asking import ask
from w2svd_core.assembly import bundled_encoders
from w2svd_core.condition import Condition
from w2svd_core.data.codec import to_signed
from w2svd_core.data.latents import load_latents
from w2svd_core.data.prepare import prepare
from w2svd_core.data.shard_sets import ShardSet
from w2svd_core.data.video import read_video
from w2svd_core.data.wanted import prepared_set
from w2svd_core.settings import Data

PLAIN = bundled_encoders()
CAPTIONS = ("talking, red hair", "smiling")


class Reader:
    """Words beside the mean colour of the frame, in the place of the words alone; it notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, first: Tensor, frames: int, captions: Sequence[str]) -> Mapping[str, Tensor]:
        self.asked += captions
        words = PLAIN.prompts.encode(captions).fields["text"]
        return {"text": words + first.mean(dim=(1, 2, 3, 4)).view(-1, 1, 1)}

    def fingerprint(self) -> str:
        return "reader"


def quiet(what: str, done: int, count: int) -> None:
    """Progress that nobody sees."""


@pytest.fixture
def settings(tmp_path: Path) -> Data:
    (tmp_path / "clips").mkdir()
    for number, caption in enumerate(CAPTIONS):
        write(tmp_path / "clips" / f"{number}.mp4", counting(5, 32, 32)[:, ::-1] // (1 + number))
        (tmp_path / "clips" / f"{number}.txt").write_text(caption)
    return Data(folder=str(tmp_path / "clips"), cache=str(tmp_path / "cache"), frames=5, height=32, width=32, fps=8.0)


def wanted_text(settings: Data, number: int, caption: str) -> Tensor:
    first = to_signed(read_video(Path(settings.folder) / f"{number}.mp4", 5, 32, 32, 8.0)[None])[:, :, :1]
    return Reader().encode(first, 5, [caption])["text"]


def test_a_clip_is_encoded_with_its_caption_and_again_with_another(settings: Data) -> None:
    source = replace(PLAIN, start=Reader(), captioned=True)
    assert prepare(settings, source, quiet).new == 2
    for again in ("talking, red hair", "nodding"):
        (Path(settings.folder) / "0.txt").write_text(again)
        source = replace(PLAIN, start=(reader := Reader()), captioned=True)
        prepare(settings, source, quiet)
        assert reader.asked == [again] * (again == "nodding")
        data = prepared_set(settings, source, source.geometry, quiet)
        assert isinstance(data, ShardSet)
        _, condition = data.batch([0, 1], torch.device("cpu"))
        wanted = torch.cat([wanted_text(settings, 0, again), wanted_text(settings, 1, CAPTIONS[1])])
        assert torch.equal(condition.fields["text"], wanted)  # what the start says, not the words alone
        plain = load_latents(settings, source, quiet)
        assert torch.equal(plain.condition.fields["text"], wanted)
        assert torch.equal(data.null.fields["text"], PLAIN.prompts.encode([""]).fields["text"])


def test_pairs_are_asked_once_each(settings: Data) -> None:
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2))
    pictures, prompts = [one, two, one, one], ["a", "a", "b", "a"]
    for captioned, times in ((True, ["a", "a", "b"]), (False, ["a", "a"])):
        source = replace(PLAIN, start=(reader := Reader()), captioned=captioned)
        asked = ask(source, settings, prompts, pictures)
        assert reader.asked == times and len(asked) == 4
    source = replace(PLAIN, start=Reader(), captioned=True)
    found = ask(source, settings, prompts, pictures).condition([3, 2, 1])
    first = to_signed(np.stack([one, one, two])[:, None])
    expected = Condition(dict(Reader().encode(first, 5, ["a", "b", "a"])))
    torch.testing.assert_close(found.fields["text"], expected.fields["text"])
