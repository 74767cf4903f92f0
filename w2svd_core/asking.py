"""What a model is asked for: prompts and first frames as its encoders read them, before the model takes its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .condition import Condition
from .data.codec import Codec, to_signed
from .data.decoding import Image
from .data.encoder_source import EncoderSource, null_condition
from .memory import free_memory
from .settings import Data

PIXELS = 2**20  # of clips whose first frames are encoded together: 60 portraits, or one clip of a real model


@dataclass(frozen=True)
class Asked:
    """Everything that sampling needs beside the model. What is asked for twice is held once.

    Attributes:
        texts, starts: a row for each different prompt, and each different first frame (none where there are none;
            with each prompt that it is asked with, where the model reads the two together).
        numbers: for each clip, its row in `texts` and in `starts`.
        null: one row.
        codec: what decodes the answers.
        shape: (c, f, h, w) of a clip's latents.
    """

    texts: Condition
    starts: Condition | None
    numbers: Sequence[tuple[int, int]]
    null: Condition
    codec: Codec
    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return len(self.numbers)

    def condition(self, clips: Sequence[int]) -> Condition:
        """The conditions of some clips, a row for each."""
        fields = dict(self.texts[[self.numbers[clip][0] for clip in clips]].fields)
        if self.starts is not None:
            fields |= self.starts[[self.numbers[clip][1] for clip in clips]].fields
        return Condition(fields)


@torch.no_grad()
def ask(source: EncoderSource, data: Data, prompts: Sequence[str], pictures: Sequence[Image] | None) -> Asked:
    """Encode prompts, and the first frames that belong to them.

    Args:
        data: the size of the clips.
        pictures: uint8 (H, W, 3), one for each prompt; None where clips start from text alone (`source.starts`).

    Raises:
        UserError: an encoder is not there or broken, or clips can't have this size.
    """
    shape = source.geometry.latent_shape(data.frames, data.height, data.width)
    different = list(dict.fromkeys(prompts))
    encoder = source.load_prompts()
    texts, null = encoder.encode(different), null_condition(encoder)
    del encoder  # a large one makes room for the next
    free_memory()
    codec = source.load_codec()
    rows = {prompt: row for row, prompt in enumerate(different)}
    if pictures is None:
        return Asked(texts, None, [(rows[prompt], 0) for prompt in prompts], null, codec, shape)
    keys = [
        (picture.tobytes(), prompt if source.captioned else "")
        for prompt, picture in zip(prompts, pictures, strict=True)
    ]
    seen = dict(zip(keys, zip(pictures, prompts, strict=True), strict=True))
    starts = _encoded(source, codec, list(seen.values()), data)
    places = {key: row for row, key in enumerate(seen)}
    numbers = [(rows[prompt], places[key]) for prompt, key in zip(prompts, keys, strict=True)]
    return Asked(texts, starts, numbers, null, codec, shape)


def _encoded(source: EncoderSource, codec: Codec, pairs: Sequence[tuple[Image, str]], data: Data) -> Condition:
    """What a model is shown of first frames and their prompts, a row for each."""
    start = source.load_start(codec)
    assert start is not None  # `source.starts`
    at_once = max(1, PIXELS // (data.frames * data.height * data.width))
    parts = []
    for i in range(0, len(pairs), at_once):
        pictures, prompts = zip(*pairs[i : i + at_once], strict=True)
        parts.append(Condition(start.encode(to_signed(np.stack(pictures)[:, None]), data.frames, prompts)))
    return Condition.cat(parts)
