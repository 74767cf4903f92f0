"""How one layer of a native file holds the outputs of several of diffusers' layers, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Part:
    """Rows (outputs) of a native layer that are rows of a diffusers one.

    Attributes:
        module: the diffusers module.
        width: how many rows, as a multiple of the layer's inputs; 0 = all that there are.
        skip: how many rows of the diffusers module come before them, likewise.
    """

    module: str
    width: int = 0
    skip: int = 0


Parts = tuple[Part, ...]  # of a native layer, in the order of its rows; the last one has whatever the others leave


def is_whole(parts: Parts) -> bool:
    """Whether the native layer is one diffusers layer, row for row."""
    return len(parts) == 1


def rows_of(parts: Parts, outputs: int, inputs: int) -> list[int]:
    """How many of a native layer's rows each part has.

    Raises:
        UserError: there are too few for them.
    """
    if is_whole(parts):
        return [outputs]
    counts = [part.width * inputs for part in parts[:-1]]
    left = outputs - sum(counts)
    if left < 1:
        names = ", ".join(dict.fromkeys(part.module for part in parts))
        raise UserError(
            f"a native layer of {outputs} outputs and {inputs} inputs can't hold {names}; is it for another model?"
        )
    return [*counts, left]


def split(parts: Parts, tensor: Tensor, inputs: int | None = None) -> dict[str, Tensor]:
    """The rows of each diffusers module in a native layer's tensor (rows, ...), as views where they lie together.

    Args:
        inputs: of the layer; None takes them from a weight (outputs, inputs), and for a bias from the parts' widths.

    Raises:
        UserError: as `rows_of`.
    """
    if is_whole(parts):
        return {parts[0].module: tensor}
    if inputs is None:
        inputs = tensor.shape[1] if tensor.ndim == 2 else len(tensor) // sum(part.width for part in parts)
    pieces = tensor.split(rows_of(parts, len(tensor), inputs))
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for part, piece in zip(parts, pieces, strict=True):
        found.setdefault(part.module, []).append((part.skip, piece))
    return {name: _in_order(of_module) for name, of_module in found.items()}


def stack(parts: Parts, tensors: Mapping[str, Tensor], inputs: int) -> Tensor:
    """The native layer's tensor (rows, ...) of those of its diffusers modules; one that is not there is zeros.

    Raises:
        UserError: a module has other rows than its part.
    """
    if is_whole(parts):
        return tensors[parts[0].module]
    some = next(iter(tensors.values()))
    return torch.cat([_rows(part, parts, tensors.get(part.module), some, inputs) for part in parts])


def _rows(part: Part, parts: Parts, tensor: Tensor | None, like: Tensor, inputs: int) -> Tensor:
    """A part's rows of its module's tensor; of the last layer all that there are."""
    count = part.width * inputs
    if tensor is None:
        return like.new_zeros(count, *like.shape[1:])
    widths = [other.width for other in parts if other.module == part.module]
    if part == parts[-1] and len(widths) == 1:
        return tensor
    if len(tensor) != sum(widths) * inputs:
        raise UserError(f"{part.module} has {len(tensor)} outputs and {inputs} inputs; is it for another model?")
    return tensor[part.skip * inputs : part.skip * inputs + count]


def _in_order(pieces: Sequence[tuple[int, Tensor]]) -> Tensor:
    ordered = [piece for _, piece in sorted(pieces, key=lambda found: found[0])]
    return ordered[0] if len(ordered) == 1 else torch.cat(ordered)
