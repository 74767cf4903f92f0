"""What the quality guard's numbers mean: the teacher's band, what is out of it, the score. Nothing here knows torch.

Band and score are this project's own and of no paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from .guard_settings import Guard

Values = Mapping[str, float]  # by metric
Band = Mapping[str, tuple[float, float]]  # lowest and highest share of the teacher's, by metric

LOGGED = "guard/"  # before the names of a look's numbers in metrics.jsonl
SHARE = "_of_teacher"  # after them, where they are shares of the teacher's
OF_A_LOOK = ("score", "out")  # what is not a metric of its clips
COMPARED = ("motion", "saturation", "sharpness", "diversity")  # what the score of own clips is made of


def band(settings: Guard) -> Band:
    """Where the student's numbers should lie, in shares of the teacher's."""
    return {
        "motion": (settings.motion_low, settings.motion_high),
        "saturation": (1 - settings.saturation, 1 + settings.saturation),
        "diversity": (settings.diversity_low, math.inf),
    }


def share(value: float, teacher: float) -> float:
    """A number in shares of the teacher's; of a teacher's 0 it is 1 where both are alike, and infinite elsewhere."""
    if teacher == 0:
        return 1.0 if value == 0 else math.inf
    return value / teacher


def shares(values: Values, teacher: Values, metrics: Iterable[str]) -> dict[str, float]:
    """Those metrics that both have, in shares of the teacher's."""
    return {name: share(values[name], teacher[name]) for name in metrics if name in values and name in teacher}


def outside(found: Values, limits: Band) -> tuple[str, ...]:
    """The metrics whose share is out of the band; one that is not a number is."""
    return tuple(name for name, (low, high) in limits.items() if name in found and not low <= found[name] <= high)


def score(values: Values, teacher: Values) -> float:
    """What the best look is the best by, lower is better.

    With portraits it is the video Fréchet distance to validation portraits. Elsewhere no network knows the clips: it is
    the mean distance of motion, saturation, sharpness and diversity from the teacher's, relative to the teacher's.
    """
    if "frechet_video" in values:
        found = values["frechet_video"]
    else:
        parts = shares(values, teacher, COMPARED).values()
        found = sum(abs(one - 1) for one in parts) / max(1, len(parts))
    return found if math.isfinite(found) else math.inf


@dataclass(frozen=True)
class Look:
    """The student after `step` rounds.

    Attributes:
        values: its numbers.
        shares: of the teacher's, those that have a band.
        out: the metrics that are out of it.
        score: lower is better.
    """

    step: int
    values: Values
    shares: Values
    out: tuple[str, ...]
    score: float

    @staticmethod
    def of(step: int, values: Values, teacher: Values, limits: Band) -> Look:
        """What numbers mean beside a teacher's."""
        found = shares(values, teacher, limits)
        return Look(step, values, found, outside(found, limits), score(values, teacher))

    def logs(self) -> dict[str, float]:
        """The numbers for metrics.jsonl."""
        found = {f"{LOGGED}{name}": value for name, value in self.values.items()}
        found |= {f"{LOGGED}{name}{SHARE}": value for name, value in self.shares.items()}
        return found | {f"{LOGGED}score": self.score, f"{LOGGED}out": float(len(self.out))}


def looks_in(metrics: Sequence[Values], teacher: Values, limits: Band) -> list[Look]:
    """The looks that a run has logged, oldest first."""
    rows = [row for row in metrics if f"{LOGGED}score" in row]
    return [Look.of(int(row["step"]), _values(row), teacher, limits) for row in rows]


def _values(row: Values) -> dict[str, float]:
    found = {name.removeprefix(LOGGED): value for name, value in row.items() if name.startswith(LOGGED)}
    return {name: value for name, value in found.items() if name not in OF_A_LOOK and not name.endswith(SHARE)}


def out_in_a_row(looks: Sequence[Look]) -> int:
    """How many of the last looks, one after another, were out of the band."""
    return sum(1 for _ in takewhile(lambda look: look.out, reversed(looks)))


def change(before: Look | None, now: Look, limits: Band) -> str:
    """A line for the user where the student left the band or came back into it; else ""."""
    was = before.out if before else ()
    parts = [f"{name} left the teacher's band ({_beside(now, name, limits)})" for name in now.out if name not in was]
    parts += [
        f"{name} is back in the teacher's band ({_beside(now, name, limits)})" for name in was if name not in now.out
    ]
    return f"guard, round {now.step}: {'; '.join(parts)}" if parts else ""


def out_of_band(values: Values, teacher: Values, limits: Band) -> list[str]:
    """A sentence for each number of a finished student that lies out of the band."""
    found = Look.of(0, values, teacher, limits)
    return [f"{name.capitalize()} is out of the teacher's band: {_beside(found, name, limits)}." for name in found.out]


def _beside(look: Look, name: str, limits: Band) -> str:
    low, high = limits[name]
    wanted = f"{low:.4g} or more" if math.isinf(high) else f"{low:.4g} to {high:.4g}"
    return f"{look.shares[name]:.3g} of the teacher's, wanted {wanted}"
