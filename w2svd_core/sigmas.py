"""The one rule of sigma lists: finite, from at most 1, falling with every step, to a last 0. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Raise ValueError with a sentence for people unless the list obeys the rule; one step lies between each two."""
    levels = list(sigmas)
    ends = len(levels) >= 2 and levels[0] <= 1 and levels[-1] == 0
    if not ends or not all(math.isfinite(s) for s in levels) or any(high <= low for high, low in pairwise(levels)):
        raise ValueError(f"sigmas {levels} must fall from at most 1 to a last 0")


def parse_sigmas(text: str) -> tuple[float, ...]:
    """The levels of a list that a person wrote, with commas or blanks between them.

    Raises:
        ValueError: a word is no number, or the list does not obey the rule; the sentence is for people.
    """
    words = [word for word in re.split(r"[,;\s]+", text.strip(" []()\t\n")) if word]
    levels = []
    for word in words:
        try:
            levels.append(float(word))
        except ValueError:
            raise ValueError(f"{word!r} in the sigmas {text!r} is no number; write 1, 0.75, 0, say") from None
    check_sigmas(levels)
    return tuple(levels)


def split_sigmas(sigmas: Sequence[float], boundary: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The parts of a list for two models: steps that begin at or above a noise level, and those that begin below it.

    The level between them is in both. A part without a step is empty.
    """
    steps = sum(level >= boundary for level in sigmas[:-1])
    high, low = tuple(sigmas[: steps + 1]), tuple(sigmas[steps:])
    return (high if len(high) > 1 else ()), (low if len(low) > 1 else ())
