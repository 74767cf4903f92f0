"""The settings of the quality guard, and which portraits it may look at. Nothing here knows torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .sections import MAX_COUNT, MAX_SEED, Section, setting

if TYPE_CHECKING:
    from .settings import _Recipe

REFERENCE_OFFSET = 500_000  # portraits behind statistics lie so many seeds from those whose captions are asked for
LEAST_PORTRAITS = 50  # that a Fréchet distance in 48 features and pairs of one caption need
USUAL_TABLE = 512  # clips of a row where `python -m w2svd_core.evaluate` is not told otherwise


class Guard(Section):
    """The quality guard: the student's clips beside its teacher's, while it learns."""

    every: int = setting(0, "updates between looks (0 = off)", unit="updates", ge=0, le=MAX_COUNT)
    clips: int = setting(64, "clips of a look, two of each caption", unit="clips", ge=2, le=65536)
    seed: int = setting(
        1_100_000, "seed of the first validation portrait (of no training or test) and of the noise", ge=0, le=MAX_SEED
    )
    motion_low: float = setting(0.85, "lowest motion of the band (1 = the teacher's)", ge=0, le=1)
    motion_high: float = setting(1.15, "highest motion of the band (1 = the teacher's)", ge=1, le=1000)
    saturation: float = setting(0.1, "saturation may be so far from the teacher's, relative to it", ge=0, le=1000)
    diversity_low: float = setting(0.85, "lowest diversity of the band (1 = the teacher's)", ge=0, le=1)
    keep: Literal["last", "best"] = setting(
        "last", "which student is saved: that of the last round or of the best look"
    )
    stop_after: int = setting(
        0, "looks out of the band in a row that end the run (0 = never)", unit="looks", ge=0, le=MAX_COUNT
    )

    def check(self, recipe: _Recipe) -> None:
        """Raise a ValueError where the guard and the rest of the recipe do not fit together."""
        if not self.every:
            if self.keep == "best" or self.stop_after:
                raise ValueError("guard.keep best and guard.stop_after need looks; set guard.every, such as 10")
            return
        if not recipe.distils:
            raise ValueError(
                f"guard.every needs a student with a teacher, and method {recipe.method} has none; set it to 0"
            )
        if recipe.data.frames < 5:
            raise ValueError(
                f"data.frames {recipe.data.frames} is too short to measure motion; use 5, or guard.every 0"
            )
        if self.clips % 2:
            raise ValueError(
                f"guard.clips {self.clips} is odd, and a look takes two clips of each caption; set it even"
            )
        if on_portraits(recipe):
            self._check_portraits(recipe)

    def _check_portraits(self, recipe: _Recipe) -> None:
        if self.clips < LEAST_PORTRAITS:
            raise ValueError(
                f"guard.clips {self.clips} is too few for a Fréchet distance; set it to {LEAST_PORTRAITS} or more"
            )
        test = recipe.evaluate
        taken = {
            f"that data.clips {recipe.data.clips} trains on": [range(recipe.data.clips)],
            f"that evaluate.seed {test.seed} measures with": portrait_seeds(test.seed, max(test.clips, USUAL_TABLE)),
        }
        for whose, theirs in taken.items():
            if any(meet(own, other) for own in portrait_seeds(self.seed, self.clips) for other in theirs):
                raise ValueError(
                    f"guard.seed {self.seed} would look at portraits {whose}; set another, such as 1100000"
                )


def on_portraits(recipe: _Recipe) -> bool:
    """Whether a look is made on held-out portraits; else on the first captions of the training itself."""
    return recipe.data.folder == "portraits" and not recipe.data.prompts


def portrait_seeds(first: int, clips: int) -> list[range]:
    """Seeds of the portraits whose captions are asked for, and of those behind the statistics."""
    return [range(start, start + clips) for start in (first, first + REFERENCE_OFFSET)]


def meet(one: range, other: range) -> bool:
    """Whether two ranges of step 1 share a number."""
    return max(one.start, other.start) < min(one.stop, other.stop)
