"""What the tests of recipes share: the one sentence that a wrong one ends in."""

from __future__ import annotations

from pathlib import Path

import pytest

from w2svd_core.config import load_recipe
from w2svd_core.errors import UserError


def fault(source: str | Path, overrides: dict[str, object] | None = None, longest: int = 500) -> str:
    """The message of the error that loading must end in; it is one sentence."""
    with pytest.raises(UserError) as caught:
        load_recipe(source, overrides)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < longest
    return message
