"""A prompt's tokens in a field of fixed length."""

from __future__ import annotations

from torch import Tensor, nn


def filled(hidden: Tensor, mask: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Hidden states `b n width` and mask (b, n) with zeros after the last token, up to `tokens`, on the CPU."""
    kept = hidden * mask[..., None].to(hidden.dtype)
    more = tokens - hidden.shape[1]
    text, seen = nn.functional.pad(kept, (0, 0, 0, more)), nn.functional.pad(mask.float(), (0, more))
    return text.cpu(), seen.cpu()
