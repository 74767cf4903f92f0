"""What a model is conditioned on: one value that can be indexed, stacked and moved, whatever the family puts in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FRAME_FIELDS = ("start", "first")  # latents that show a given first frame: beside the noise, or as x0 itself holds it
GUIDANCE = "guidance"  # the field (B,) that tells a model its embedded guidance
LENGTH = "length/"  # begins the name of a field (B,): how many tokens of another one a row has, the rest being filler


@dataclass(frozen=True)
class Condition:
    """Named tensors that share their first dimension, the batch.

    Which names there are is the backbone's affair (`backbones.base.Facts.needs`); everybody else only carries the value
    along. For a text-to-video model it is `{"text": (B, tokens, width)}`; a first frame adds `start`, its latents, and
    `image`, its embedding. A role puts in `guidance` where a model takes one. Where a model can't be told which tokens
    are filler, `filled` makes rows of different lengths one value, and `alike` takes them apart again for a call.
    """

    fields: Mapping[str, Tensor]

    def __len__(self) -> int:
        return int(next(iter(self.fields.values())).shape[0])

    def __getitem__(self, rows: Any) -> Condition:
        return Condition({name: value[rows] for name, value in self.fields.items()})

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """Move or cast every field, like `Tensor.to`."""
        return Condition({name: value.to(*args, **kwargs) for name, value in self.fields.items()})

    def expand(self, count: int) -> Condition:
        """Repeat a single row `count` times without copying it."""
        return Condition({name: v.expand(count, *v.shape[1:]) for name, v in self.fields.items()})

    def guided(self, scale: float) -> Condition:
        """The same rows, told an embedded guidance."""
        some = next(iter(self.fields.values()))
        told = torch.full((len(self),), scale, dtype=torch.float32, device=some.device)
        return Condition({**self.fields, GUIDANCE: told})

    def instead(self, null: Condition) -> Condition:
        """The same rows without what guidance leaves out: the fields of `null` (one row) take the place of these."""
        empty = null.expand(len(self)).fields
        return Condition({name: empty.get(name, value) for name, value in self.fields.items()})

    def where(self, keep: Tensor, other: Condition) -> Condition:
        """Rows of self where `keep` (B,) is true, of `other` elsewhere."""
        return Condition(
            {n: torch.where(keep.view(-1, *[1] * (v.ndim - 1)), v, other.fields[n]) for n, v in self.fields.items()}
        )

    @property
    def ragged(self) -> bool:
        """Whether rows may differ in how many tokens they have."""
        return any(name.startswith(LENGTH) for name in self.fields)

    def alike(self) -> list[tuple[Tensor, Condition]]:
        """The numbers of rows that can be in one call, and what it is to be made with: nothing that they lack."""
        lengths = [name for name in self.fields if name.startswith(LENGTH)]
        table = torch.stack([self.fields[name] for name in lengths], 1)  # rows lengths
        found = []
        for kind in table.unique(dim=0):
            rows = (table == kind).all(1).nonzero().flatten()
            fields = {name: value[rows] for name, value in self.fields.items() if name not in lengths}
            for name, length in zip(lengths, kind.tolist(), strict=True):
                whole = fields.pop(name.removeprefix(LENGTH))
                if length:
                    fields[name.removeprefix(LENGTH)] = whole[:, :length]
            found.append((rows, Condition(fields)))
        return found

    @staticmethod
    def filled(rows: Sequence[Condition], names: Sequence[str]) -> list[Condition]:
        """Conditions of one row each that `cat` takes: what differs in its number of tokens ends in zeros.

        Args:
            names: fields `1 tokens ...` that may differ, or be absent (no tokens). Those that do gain their length.
        """
        found = [dict(row.fields) for row in rows]
        for name in names:
            held = [fields[name] for fields in found if name in fields]
            lengths = [fields[name].shape[1] if name in fields else 0 for fields in found]
            if len(set(lengths)) < 2:
                continue
            for fields, length in zip(found, lengths, strict=True):
                whole = held[0].new_zeros(1, max(lengths), *held[0].shape[2:])
                if length:
                    whole[:, :length] = fields[name]
                fields |= {name: whole, LENGTH + name: torch.tensor([length])}
        return [Condition(fields) for fields in found]

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Stack conditions of the same fields along the batch."""
        if any(part.fields.keys() != parts[0].fields.keys() for part in parts):
            raise ValueError(f"conditions of other fields: {[sorted(part.fields) for part in parts]}")
        return Condition({name: torch.cat([part.fields[name] for part in parts]) for name in parts[0].fields})
