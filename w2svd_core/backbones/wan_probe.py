"""Something small to ask a Wan, always the same, by which two sets of weights can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..condition import Condition
from .wan_variants import kind_of, takes_of

SIGMAS = (0.9, 0.35)
FRAMES, ROWS = 3, 2  # latent frames, and tokens along either side of one
TEXT_TOKENS, IMAGE_TOKENS = 5, 7


def probe_of(config: Mapping[str, Any], seed: int = 0) -> tuple[Tensor, Tensor, Condition]:
    """Random x_t (2, c, f, h, w), sigma (2,) and a condition with all that a model of this config takes."""
    rng = torch.Generator().manual_seed(seed)
    frames, height, width = config["patch_size"]
    shape = (len(SIGMAS), config["out_channels"], FRAMES * frames, ROWS * height, ROWS * width)
    x_t = torch.randn(shape, generator=rng)
    sizes = {
        "text": (len(SIGMAS), TEXT_TOKENS, config["text_dim"]),
        "start": (*shape[:2], 1, *shape[3:]) if kind_of(config) == "ti2v" else shape,
        "image": (len(SIGMAS), IMAGE_TOKENS, config.get("image_dim") or 0),
    }
    fields = {name: torch.randn(sizes[name], generator=rng) for name in takes_of(config)}
    return x_t, torch.tensor(SIGMAS), Condition(fields)
