"""Randomness that is a function of where you are, not of what came before.

Every draw of a run comes from a generator seeded by (seed, step, purpose). A resumed run therefore needs no stored
random state to go on bit for bit, and every process of a run draws the same coins without talking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, *where: int | str) -> torch.Generator:
    """A CPU generator for one purpose at one place, for example `generator(seed, step, "exit")`."""
    digest = hashlib.sha256(repr((seed, *where)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def noise_of_seeds(shape: Sequence[int], seeds: Sequence[int], step: int) -> Tensor:
    """Unit noise (len(seeds), *shape): each row depends on its own seed and the step alone, never on its neighbours."""
    return torch.stack([torch.randn(*shape, generator=generator(seed, step, "sample")) for seed in seeds])


def shuffled_rows(count: int, start: int, size: int, seed: int) -> list[int]:
    """Rows `start` to `start + size` of an endless stream that goes through all `count` rows, reshuffled each time."""
    rows: list[int] = []
    while len(rows) < size:
        epoch, offset = divmod(start + len(rows), count)
        order = torch.randperm(count, generator=generator(seed, epoch, "order"))
        rows += order[offset : offset + size - len(rows)].tolist()
    return rows
