"""Something small to ask a HunyuanVideo, always the same, by which two sets of weights can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..condition import GUIDANCE, Condition
from .hunyuan_variants import takes_of

SIGMAS = (0.9, 0.35)
FRAMES, ROWS = 3, 2  # latent frames, and tokens along either side of one
TOKENS, SHORTER = 5, 2  # of the text, and by how much the second prompt is shorter
EMBEDDED = 6.0  # guidance


def probe_of(config: Mapping[str, Any], seed: int = 0) -> tuple[Tensor, Tensor, Condition]:
    """Random x_t (2, c, f, h, w), sigma (2,) and a condition with all that a model of this config takes."""
    rng = torch.Generator().manual_seed(seed)
    rows, side = len(SIGMAS), ROWS * config["patch_size"]
    shape = (rows, config["out_channels"], FRAMES * config["patch_size_t"], side, side)
    x_t = torch.randn(shape, generator=rng)
    mask = torch.ones(rows, TOKENS)
    mask[1:, TOKENS - SHORTER :] = 0
    text = torch.randn(rows, TOKENS, config["text_embed_dim"], generator=rng) * mask[..., None]
    first = torch.randn(rows, shape[1], 1, side, side, generator=rng)
    known = {
        "text": text,
        "text_mask": mask,
        "pooled": torch.randn(rows, config["pooled_projection_dim"], generator=rng),
        "start": first,
        "first": first,
        GUIDANCE: torch.full((rows,), EMBEDDED),
    }
    return x_t, torch.tensor(SIGMAS), Condition({name: known[name] for name in takes_of(config)})
