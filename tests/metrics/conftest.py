"""Real renders that the metric tests share."""

from __future__ import annotations

import numpy as np
import pytest

from w2svd_core.data import portraits
from w2svd_core.metrics.networks import SIDE, Videos

FIRST_SEED = 2_950_000  # never seen by the networks


@pytest.fixture(scope="session")
def renders() -> Videos:
    """64 held-out portraits, uint8 (64, 17, 32, 32, 3)."""
    seeds = range(FIRST_SEED, FIRST_SEED + 64)
    return np.stack([portraits.render(portraits.portrait_from_seed(seed), height=SIDE, width=SIDE) for seed in seeds])


@pytest.fixture(scope="session")
def truth() -> list[dict[str, str]]:
    """The true attributes of `renders`."""
    seeds = range(FIRST_SEED, FIRST_SEED + 64)
    return [dict(portraits.attributes(portraits.portrait_from_seed(seed))) for seed in seeds]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """The captions of `renders`."""
    seeds = range(FIRST_SEED, FIRST_SEED + 64)
    return [portraits.caption(portraits.portrait_from_seed(seed)) for seed in seeds]
