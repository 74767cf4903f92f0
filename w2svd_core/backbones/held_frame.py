"""A first latent frame that a clip holds as it is: it is put in, and nothing is to be predicted there."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError


def with_first(x: Tensor, first: Tensor) -> Tensor:
    """x `b c f h w` with the given frame `b c 1 h w` in the place of its first one, in x's type."""
    return torch.cat([first.to(x.dtype), x[:, :, 1:]], dim=2)


def free_after_first(like: Tensor) -> Tensor:
    """`b 1 f 1 1`: 0 for the first of the frames of `like` `b c f h w`, 1 for the others.

    Raises:
        UserError: there are no others.
    """
    if like.shape[2] == 1:
        raise UserError("a clip of one latent frame is nothing but its given first frame; raise data.frames")
    mask = torch.ones(len(like), 1, like.shape[2], 1, 1, device=like.device)
    mask[:, :, 0] = 0
    return mask
