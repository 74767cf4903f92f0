"""Where the encoders of a preparation come from: each loads when it is needed, and can be dropped before the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..condition import Condition
from ..geometry import LatentGeometry
from .codec import Codec
from .prompts import PromptEncoder


class StartEncoder(Protocol):
    """What an image-to-video model is shown of a clip's first frame."""

    def encode(self, first: Tensor, frames: int, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Fields of the condition; where the prompt encoder makes one of them, too, these are the ones that count.

        Args:
            first: the first frame `b 3 1 h w` in [-1, 1].
            frames: the clip's length.
            captions: b texts; most encoders do not look at them (`EncoderSource.captioned`).
        """
        ...

    def fingerprint(self) -> str:
        """Changes when the fields of the same frame would."""
        ...


class EncoderSource(Protocol):
    """The encoders of one model, not loaded yet.

    Attributes:
        geometry: of the codec's latents.
        width: of a prompt's tokens.
        starts: whether clips are made from a given first frame.
        captioned: what the model is shown of a first frame depends on the caption, too.
    """

    @property
    def geometry(self) -> LatentGeometry: ...

    @property
    def width(self) -> int: ...

    @property
    def starts(self) -> bool: ...

    @property
    def captioned(self) -> bool: ...

    def fingerprints(self) -> Mapping[str, str]:
        """One of "codec", "text" (null prompt included) and "start" (empty without one) each, without loading much.

        They change when what the encoder makes would. A training asks for them to find what was prepared for it.
        """
        ...

    def load_prompts(self) -> PromptEncoder: ...

    def load_codec(self) -> Codec: ...

    def load_start(self, codec: Codec) -> StartEncoder | None:
        """None for a model that takes no first frame."""
        ...


@dataclass(frozen=True)
class LoadedEncoders:
    """Encoders so small that they are there already."""

    codec: Codec
    prompts: PromptEncoder
    start: StartEncoder | None = None
    captioned: bool = False

    @property
    def geometry(self) -> LatentGeometry:
        return self.codec.geometry

    @property
    def width(self) -> int:
        return self.prompts.width

    @property
    def starts(self) -> bool:
        return self.start is not None

    def fingerprints(self) -> dict[str, str]:
        return {
            "codec": self.codec.fingerprint(),
            "text": self.prompts.fingerprint(),
            "start": self.start.fingerprint() if self.start else "",
        }

    def load_prompts(self) -> PromptEncoder:
        return self.prompts

    def load_codec(self) -> Codec:
        return self.codec

    def load_start(self, codec: Codec) -> StartEncoder | None:
        return self.start


def null_condition(prompts: PromptEncoder) -> Condition:
    """What guidance leads away from, one row: the encoder's own, else the empty prompt."""
    own = getattr(prompts, "null", None)
    null: Condition = own() if own is not None else prompts.encode([""])
    return null


def empty_condition(prompts: PromptEncoder) -> Condition:
    """What is left where a caption is left out, one row: the empty prompt, and not what guidance leads away from."""
    own = getattr(prompts, "empty", None)
    empty: Condition = own() if own is not None else prompts.encode([""])
    return empty
