"""Whether a model takes what it is given: the sentences that every family says alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..condition import Condition
from ..errors import UserError
from ..geometry import LatentGeometry

OTHER_MODEL = "name another one in model.path, or set model.encoders to own for those that it was made with"


def check_fit(channels: int, widths: Sequence[int], latents: LatentGeometry, width: int) -> None:
    """Whether a model takes the encoders' latents and prompts.

    Args:
        channels: of the model's latents.
        widths: that a prompt's tokens may have, the usual one first.
        latents: of the codec.
        width: of the prompt encoder's tokens.

    Raises:
        UserError: it does not; the sentence names both sides.
    """
    if latents.channels != channels:
        raise UserError(
            f"the model takes latents of {channels} channels, the codec makes {latents.channels}; {OTHER_MODEL}"
        )
    if width not in widths:
        raise UserError(
            f"the model takes prompt embeddings {widths[0]} wide, the prompt encoder makes them {width} wide; "
            f"{OTHER_MODEL}"
        )


def check_fields(name: Callable[[], str], needs: Sequence[str], takes: Sequence[str], condition: Condition) -> None:
    """Whether a condition has the fields that a model needs, and none that it does not know.

    Args:
        name: of the model, asked for only if it has not.

    Raises:
        UserError: it has not; the sentence names both sides.
    """
    missing = [field for field in needs if field not in condition.fields]
    unknown = [field for field in condition.fields if field not in takes]
    if missing or unknown:
        wants = f"needs {' and '.join(missing)} of each clip" if missing else f"takes no {' and '.join(unknown)}"
        raise UserError(
            f"{name()} {wants}, but the clips were prepared with {', '.join(condition.fields)}; "
            "name a model of their kind in model.path, or prepare them again for this one"
        )


def check_one_frame(name: Callable[[], str], frame: Tensor, channels: int) -> None:
    """Whether a first frame `b c 1 h w` is one latent frame of so many channels.

    Raises:
        UserError: it is not; the sentence names both sides.
    """
    if frame.shape[1:3] != (channels, 1):
        raise UserError(
            f"{name()} takes one first frame of {channels} channels, the clips were prepared with {frame.shape[2]} of "
            f"{frame.shape[1]}; prepare them again for this model"
        )
