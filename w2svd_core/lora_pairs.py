"""One layer's update as two thin matrices, and the updates of native layers that are several layers of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .backbones.key_parts import Parts, is_whole, split, stack


@dataclass(frozen=True)
class LoraPair:
    """One layer's update alpha / r * up @ down, with down (r, in) and up (out, r)."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def delta(self) -> Tensor:
        """The change of the layer's weight (out, in), float64."""
        return (self.up.double() @ self.down.double()) * (self.alpha / self.rank)


def fused(parts: Parts, pairs: Mapping[str, LoraPair]) -> LoraPair:
    """A native layer's update, of those of its diffusers layers: `down` one above the other, `up` block-diagonal.

    Where they have one `down` in common, it is there once. A layer without an update gets zeros. alpha goes into `up`
    where the layers' alpha / r differ.

    Args:
        pairs: by diffusers module; at least one of the parts'.

    Raises:
        UserError: one has other outputs than the native layer has room for.
    """
    if is_whole(parts):
        return pairs[parts[0].module]
    first, *others = pairs.values()
    inputs, one_scale = first.down.shape[1], len({pair.alpha / pair.rank for pair in pairs.values()}) == 1
    if one_scale and all(torch.equal(pair.down, first.down) for pair in others):
        ups = {name: pair.up for name, pair in pairs.items()}
        return LoraPair(first.down, stack(parts, ups, inputs), first.alpha)
    rank, before = sum(pair.rank for pair in pairs.values()), 0
    ups, downs = {}, []
    for name in dict.fromkeys(part.module for part in parts if part.module in pairs):
        pair = pairs[name]
        up = pair.up if one_scale else (pair.up.double() * (pair.alpha / pair.rank)).to(pair.up.dtype)
        ups[name] = pad(up, (before, rank - before - pair.rank))
        downs.append(pair.down)
        before += pair.rank
    alpha = first.alpha * rank / first.rank if one_scale else float(rank)
    return LoraPair(torch.cat(downs), stack(parts, ups, inputs), alpha)


def parted(parts: Parts, pair: LoraPair) -> dict[str, LoraPair]:
    """A native layer's update as those of its diffusers layers, by module: `fused` the other way round.

    A layer keeps the rows of `down` that act on it. All of them where the layers share them, as in files of others
    that were trained on the native layer; one that nothing acts on is left out.

    Raises:
        UserError: the native layer has too few outputs for its parts.
    """
    if is_whole(parts):
        return {parts[0].module: pair}
    found = {}
    for name, (up, rows) in _acting(split(parts, pair.up, pair.down.shape[1])).items():
        down = pair.down[rows].contiguous()
        found[name] = LoraPair(down, up[:, rows].contiguous(), pair.alpha * len(down) / pair.rank)
    return found


def _acting(ups: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Each layer's up (out, r), and which of its columns are its own."""
    rank = next(iter(ups.values())).shape[1]
    acts = {name: up.ne(0).any(dim=0) for name, up in ups.items()}
    if rank % len(ups) == 0:  # blocks of one size, as `fused` makes them of equal ranks; some may be zeros
        owners = torch.arange(rank) // (rank // len(ups))
        blocks = {name: owners == number for number, name in enumerate(ups)}
        if not any((acts[name].cpu() & ~own).any() for name, own in blocks.items()):
            return {name: (ups[name], own) for name, own in blocks.items()}
    if not any(columns.any() for columns in acts.values()):
        return {name: (up, torch.ones(rank, dtype=torch.bool)) for name, up in ups.items()}
    return {name: (ups[name], columns) for name, columns in acts.items() if columns.any()}
