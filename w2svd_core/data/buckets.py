"""Which shape a clip is cropped to: a few shapes of one pixel budget, and lengths that a latent can have. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..geometry import LatentGeometry
from ..settings import Data

WIDEST = 16 / 9  # aspect up to which shapes are made, either way; farther if the recipe's own shape is


@dataclass(frozen=True, order=True)
class Bucket:
    """The shape of clips that are trained on together, in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames} x {self.height} x {self.width}"


def shapes(height: int, width: int, cell: int, count: int) -> list[tuple[int, int]]:
    """At most `count` shapes (height, width) of about `height * width` pixels, never more.

    The first is `height` x `width` itself. Each next one is the shape whose aspect lies farthest, as a ratio, from
    those before it, between 16:9 and 9:16 (or the first's own aspect and its reverse, where they are wider). Of two as
    far, the wider.

    Args:
        cell: pixels that every side is a multiple of.
    """
    budget, reach = height * width, max(abs(math.log(width / height)), math.log(WIDEST)) + 1e-9
    sides = [(side, budget // side // cell * cell) for side in range(cell, budget // cell + 1, cell)]
    possible = {shape for shape in sides if shape[1] and abs(_log_aspect(*shape)) <= reach}
    found = [(height, width)]
    gaps = dict.fromkeys(possible, math.inf)  # from each to the nearest that was taken
    while len(found) < count:
        last = _log_aspect(*found[-1])
        gaps = {shape: min(gap, abs(_log_aspect(*shape) - last)) for shape, gap in gaps.items()}
        best = max(gaps, key=lambda shape: (round(gaps[shape], 9), _log_aspect(*shape), shape), default=None)
        if best is None or gaps[best] < 1e-9:
            break
        found.append(best)
    return found


def nearest(height: int, width: int, among: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The shape whose aspect is nearest to a picture's, as a ratio; of two as near, the first."""
    aspect = _log_aspect(height, width)
    return min(among, key=lambda shape: round(abs(_log_aspect(*shape) - aspect), 9))


def _log_aspect(height: int, width: int) -> float:
    return math.log(width / height)


@dataclass(frozen=True)
class Plan:
    """How clips of any size and length are cropped.

    Attributes:
        shapes: (height, width), the recipe's own first.
        frames, min_frames: a clip's length at most and at least.
        time: frames of a latent frame.
    """

    shapes: tuple[tuple[int, int], ...]
    frames: int
    min_frames: int
    time: int

    @staticmethod
    def of(settings: Data, geometry: LatentGeometry) -> Plan:
        """What a recipe asks for.

        Raises:
            UserError: its size is none of this model's; the sentence names the nearest.
        """
        geometry.latent_shape(settings.frames, settings.height, settings.width)
        least = settings.min_frames or settings.frames
        if least > settings.frames:
            raise UserError(
                f"data.min_frames is {least}, more than data.frames {settings.frames}; lower it, or set it to 0"
            )
        sizes = shapes(settings.height, settings.width, geometry.space * geometry.patch, settings.buckets)
        return Plan(tuple(sizes), settings.frames, least, geometry.time)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a picture is cropped and resized to."""
        return nearest(height, width, self.shapes)

    def length(self, frames: int) -> int:
        """How many of a clip's frames are used, 1 + time k of them; 0 for a clip that is too short."""
        longest = (min(frames, self.frames) - 1) // self.time * self.time + 1
        return longest if frames >= 1 and longest >= self.min_frames else 0
