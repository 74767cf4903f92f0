"""The one rule of sigma lists: finite, from at most 1, falling with every step, to a last 0. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Raise ValueError with a sentence for people unless the list obeys the rule; one step lies between each two."""
    levels = list(sigmas)
    ends = len(levels) >= 2 and levels[0] <= 1 and levels[-1] == 0
    if not ends or not all(math.isfinite(s) for s in levels) or any(high <= low for high, low in pairwise(levels)):
        raise ValueError(f"sigmas {levels} must fall from at most 1 to a last 0")
