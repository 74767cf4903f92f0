"""How the size of a clip becomes the size of a latent: what codecs and model families agree on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UserError


@dataclass(frozen=True)
class LatentGeometry:
    """How a clip's size becomes a latent's size.

    Attributes:
        channels: latent channels.
        space: pixels per latent cell, each way.
        time: frames per latent frame; the first frame has one of its own.
        patch: latent cells per token, each way: latent height and width are multiples of it.
    """

    channels: int
    space: int
    time: int
    patch: int = 1

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(c, f, h, w) of a clip.

        Raises:
            UserError: the size does not fit; the sentence names the nearest one that does.
        """
        cell = self.space * self.patch
        if (frames - 1) % self.time or frames < 1:
            good = max(1, (frames - 1) // self.time * self.time + 1)
            raise UserError(f"data.frames is {frames}, but this model takes 1 + {self.time} k frames; use {good}")
        for name, size in (("height", height), ("width", width)):
            if size % cell or size < cell:
                good = max(cell, size // cell * cell)
                raise UserError(f"data.{name} is {size} px, but this model takes multiples of {cell}; use {good}")
        return self.channels, (frames - 1) // self.time + 1, height // self.space, width // self.space
