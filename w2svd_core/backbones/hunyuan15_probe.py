"""Something small to ask a HunyuanVideo 1.5, always the same, by which two sets of weights can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..condition import Condition

SIGMAS = (0.9, 0.35)
FRAMES, ROWS = 3, 2  # latent frames, and tokens along either side of one
TOKENS, SHORTER = 5, 2  # of the text and of the glyphs, and by how much the second prompt is shorter
PATCHES = 3  # of the picture


def probe_of(config: Mapping[str, Any], seed: int = 0) -> tuple[Tensor, Tensor, Condition]:
    """Random x_t (2, c, f, h, w), sigma (2,) and a condition with all that a model of this config takes."""
    rng = torch.Generator().manual_seed(seed)
    rows, side = len(SIGMAS), ROWS * config["patch_size"]
    shape = (rows, config["out_channels"], FRAMES * config["patch_size_t"], side, side)
    x_t = torch.randn(shape, generator=rng)
    mask = torch.ones(rows, TOKENS)
    mask[1:, TOKENS - SHORTER :] = 0

    def words(width: int) -> Tensor:
        return torch.randn(rows, TOKENS, width, generator=rng) * mask[..., None]

    fields = {
        "text": words(config["text_embed_dim"]),
        "text_mask": mask,
        "glyphs": words(config["text_embed_2_dim"]),
        "glyphs_mask": mask.flip(0),
        "start": torch.randn(*shape[:2], 1, side, side, generator=rng),
        "image": torch.randn(rows, PATCHES, config["image_embed_dim"], generator=rng),
    }
    return x_t, torch.tensor(SIGMAS), Condition(fields)
