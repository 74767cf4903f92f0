"""A first frame that a model reads beside the noise: its latents, and where they are given."""

from __future__ import annotations

import torch
from torch import Tensor


def beside(start: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """What the model reads beside the noise `like` `b c f h w`: the frame `b c 1 h w` and zeros after it, and `b 1 f h
    w`, 1 where it is given; zeros alone without one.
    """
    frames, given = torch.zeros_like(like), torch.zeros_like(like[:, :1])
    if start is not None:
        frames[:, :, :1] = start
        given[:, :, 0] = 1
    return frames, given
