"""Model families. A family is one file here; nothing outside this folder names one."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UserError
from .base import Backbone


def _wan() -> Backbone:
    from .wan import BACKBONE

    return BACKBONE


def _animatediff() -> Backbone:
    from .animatediff import BACKBONE

    return BACKBONE


def _image_unet() -> Backbone:
    from .image_unet import BACKBONE

    return BACKBONE


FAMILIES: dict[str, Callable[[], Backbone]] = {"wan": _wan, "animatediff": _animatediff, "image_unet": _image_unet}


def backbone(family: str) -> Backbone:
    """The backbone of a family.

    Raises:
        UserError: there is no such family.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family {family!r} is not known; use one of: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[family]()
