"""What the shapes of a file's tensors tell of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

Shapes = Mapping[str, Sequence[int]]  # diffusers' name of a parameter -> its shape


@dataclass(frozen=True)
class Told:
    """The shapes of one file.

    Attributes:
        shapes: by diffusers' names.
        place: of the file, for messages.
        what: the model's kind, for messages.
    """

    shapes: Shapes
    place: Path | str
    what: str

    def shape(self, name: str, dimensions: int) -> Sequence[int]:
        """The shape of a parameter.

        Raises:
            UserError: it is missing, or of other dimensions.
        """
        found = self.shapes.get(name)
        if found is None or len(found) != dimensions:
            raise UserError(f"{self.place} has no whole {name}, so it does not hold a whole {self.what}; copy it again")
        return found

    def blocks(self, prefix: str) -> int:
        """How many numbered blocks there are: `prefix` is what stands before the number."""
        numbers = (int(name[len(prefix) :].split(".")[0]) for name in self.shapes if name.startswith(prefix))
        return 1 + max(numbers, default=-1)

    def heads(self, width: int, head_dim: int) -> int:
        """Of a model that is so wide, whose published kin have heads of `head_dim`, which no shape tells.

        Raises:
            UserError: the width is no multiple of it.
        """
        if width % head_dim:
            raise UserError(
                f"{self.place} does not say its architecture, and {width} is no multiple of the usual head of "
                f"{head_dim}; give model.path a diffusers folder, or a native file that this project wrote"
            )
        return width // head_dim
