"""Something small to ask a Cosmos, always the same, by which two sets of weights can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..condition import Condition
from .cosmos_variants import widths_of

SIGMAS = (0.9, 0.35)
FRAMES, SIDE = 3, 2  # latent frames, and tokens along either side of one
TEXT_TOKENS = 5


def probe_of(config: Mapping[str, Any], seed: int = 0) -> tuple[Tensor, Tensor, Condition]:
    """Random x_t (2, c, f, h, w), sigma (2,) and a condition with all that a model of this config takes.

    Prompts are raw, so that the projection is asked, too.
    """
    rng = torch.Generator().manual_seed(seed)
    _, height, width = config["patch_size"]
    shape = (len(SIGMAS), config["out_channels"], FRAMES, SIDE * height, SIDE * width)
    x_t = torch.randn(shape, generator=rng)
    text = torch.randn(len(SIGMAS), TEXT_TOKENS, widths_of(config)[-1], generator=rng)
    first = torch.randn(*shape[:2], 1, *shape[3:], generator=rng)
    return x_t, torch.tensor(SIGMAS), Condition({"text": text, "first": first})
