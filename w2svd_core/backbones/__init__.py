"""Model families. A family is one file here; nothing outside this folder names one."""

from __future__ import annotations

import importlib

from ..errors import UserError
from .base import Backbone

FAMILIES = {"wan": ".wan"}


def backbone(family: str) -> Backbone:
    """The backbone of a family.

    Raises:
        UserError: there is no such family.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family {family!r} is not known; use one of: {', '.join(sorted(FAMILIES))}")
    found: Backbone = importlib.import_module(FAMILIES[family], __name__).BACKBONE
    return found
