"""Number formats, without an import of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or unchanged where it is wider already."""
    return x if x.is_floating_point() and x.element_size() >= 4 else x.float()
