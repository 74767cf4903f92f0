"""Model families. A family is one file here; nothing outside this folder names one."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UserError
from .base import Backbone


def _wan() -> Backbone:
    from .wan import BACKBONE

    return BACKBONE


FAMILIES: dict[str, Callable[[], Backbone]] = {"wan": _wan}


def backbone(family: str) -> Backbone:
    """The backbone of a family.

    Raises:
        UserError: there is no such family.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family {family!r} is not known; use one of: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[family]()
