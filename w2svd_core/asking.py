"""What a model is asked for: prompts and first frames as its encoders read them, before the model takes its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .condition import Condition
from .data.codec import Codec, Video, to_unit
from .data.encoder_source import EncoderSource, null_condition
from .settings import Data

AT_ONCE = 32  # first frames that are encoded together


@dataclass(frozen=True)
class Asked:
    """Everything that sampling needs beside the model.

    Attributes:
        condition: a row for each prompt.
        null: one row.
        codec: what decodes the answers.
        shape: (c, f, h, w) of a clip's latents.
    """

    condition: Condition
    null: Condition
    codec: Codec
    shape: tuple[int, int, int, int]


@torch.no_grad()
def ask(source: EncoderSource, data: Data, prompts: Sequence[str], pictures: Video | None) -> Asked:
    """Encode prompts, and the first frames that belong to them.

    Args:
        data: the size of the clips.
        pictures: uint8 `n h w 3`, one for each prompt; None where clips start from text alone (`source.starts`).

    Raises:
        UserError: an encoder is not there or broken, or clips can't have this size.
    """
    shape = source.geometry.latent_shape(data.frames, data.height, data.width)
    encoder = source.load_prompts()
    condition, null = encoder.encode(prompts), null_condition(encoder)
    del encoder  # a large one makes room for the next
    codec = source.load_codec()
    start = None if pictures is None else source.load_start(codec)
    if start is not None and pictures is not None:
        parts = [
            Condition(start.encode(to_unit(pictures[i : i + AT_ONCE, None]), data.frames))
            for i in range(0, len(pictures), AT_ONCE)
        ]
        condition = Condition({**condition.fields, **Condition.cat(parts).fields})
    return Asked(condition, null, codec, shape)
