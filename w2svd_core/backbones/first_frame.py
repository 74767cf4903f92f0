"""The first frame as its own latents alone: what a model is shown that has a place for one frame."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..data.codec import Codec
from ..hashing import value_hash


class FirstFrame:
    """A start encoder: the latents of the first frame alone, `b c 1 h w`.

    Args:
        codec: the model's VAE.
        field: of the condition, under which the model looks for them.
    """

    def __init__(self, codec: Codec, field: str = "start") -> None:
        self.codec, self.field = codec, field

    def encode(self, first: Tensor, frames: int, captions: Sequence[str]) -> dict[str, Tensor]:
        """Fields of the condition, of a first frame `b 3 1 h w` in [-1, 1]; the same for any length and caption."""
        return {self.field: self.codec.encode(first)}

    def fingerprint(self) -> str:
        named = [] if self.field == "start" else [self.field]
        return value_hash(["first frame", self.codec.fingerprint(), *named])
