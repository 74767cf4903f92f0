"""Number formats, and numbers in words, without an import of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged where it is wider already."""
    return x if x.is_floating_point() and x.element_size() >= 4 else x.float()


def motion_of(x: Tensor) -> dict[str, float]:
    """What a training logs of motion: mean |next latent frame - this one| of `b c f h w`; nothing of a single frame."""
    return {"student/motion": float(x.diff(dim=2).abs().mean())} if x.shape[2] > 1 else {}


def in_words(count: int) -> str:
    """A number of parameters, as people say it."""
    for unit, letter in ((1e9, " billion"), (1e6, " million")):
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return f"{count:,}"
