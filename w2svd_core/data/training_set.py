"""What a training asks of its data, whether they lie in memory, in shards on a disk, or are prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..condition import Condition


class TrainingSet(Protocol):
    """Rows of latents and conditions, in buckets of one shape."""

    @property
    def null(self) -> Condition:
        """What guidance leads away from: one row, of the fields that it leaves out."""
        ...

    @property
    def empty(self) -> Condition:
        """The empty prompt: one row of the same fields; the same as `null` for families that have nothing to avoid."""
        ...

    @property
    def captions(self) -> Sequence[str]:
        """What the first rows show; not necessarily all rows."""
        ...

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Changes with anything that a training would see."""
        ...

    def rows(self, place: int, count: int, seed: int) -> Sequence[int]:
        """A batch: `count` rows of one bucket, a function of the arguments alone.

        Args:
            place: in the endless stream of rows; the next batch is at `place + count`.
            count: the same for all batches of a stream.
            seed: of the order.
        """
        ...

    def shape(self, rows: Sequence[int]) -> tuple[int, int, int, int]:
        """(c, f, h, w) of rows of one bucket."""
        ...

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor | None, Condition]:
        """Latents `b c f h w` and conditions of rows of one bucket, on a device; without clips no latents."""
        ...


def bucket_rows(sizes: Sequence[int], place: int, count: int, seed: int) -> tuple[int, int, int]:
    """Which bucket a batch comes from, and where in that bucket's own stream it begins.

    In an epoch every bucket has as many batches as whole ones come out of it, but at least one, in a shuffled order.
    What is left of a bucket begins its next epoch. With one bucket, `place` comes back as it is.

    Args:
        sizes: rows of each bucket.
        place, count, seed: as of `TrainingSet.rows`.

    Returns:
        (bucket, place in its stream, seed of its order).
    """
    from ..randomness import generator

    parts = [max(size // count, 1) for size in sizes]
    epoch, index = divmod(place // count, sum(parts))
    order = torch.randperm(sum(parts), generator=generator(seed, epoch, "buckets"))
    bounds = torch.tensor(parts).cumsum(0)
    owners = torch.bucketize(order, bounds, right=True)  # batch numbers below the first bound are the first bucket's
    bucket = int(owners[index])
    before = int((owners[:index] == bucket).sum())
    return bucket, (epoch * parts[bucket] + before) * count + place % count, seed + 104_729 * bucket
