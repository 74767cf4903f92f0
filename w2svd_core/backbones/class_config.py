"""The config of a library's class: the published ones, which are bundled, and one on disk, checked before use."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError

CONFIGS = Path(__file__).parent / "configs"


def bundled_config(name: str) -> dict[str, Any]:
    """The arguments that a published model was made with, from `configs/`."""
    text = (CONFIGS / f"{name}.json").read_text(encoding="utf-8")
    return {key: value for key, value in json.loads(text).items() if not key.startswith("_")}


def config_of(model: nn.Module) -> dict[str, Any]:
    """The arguments that the model was made with; without diffusers' own entries, such as where it was loaded from."""
    return {k: v for k, v in dict(model.config).items() if not k.startswith("_")}  # type: ignore[arg-type]


def arguments_in(
    config: Mapping[str, Any], made: type, sizes: Sequence[str], place: Path | str, instead: str
) -> dict[str, Any]:
    """The arguments of a class that a config holds.

    Args:
        made: the class.
        sizes: what the config must say; for the rest the class has defaults that every published model shares.
        place: of the config, for messages.
        instead: what to do about a config of another kind.

    Raises:
        UserError: it has a key that the class does not know, lacks a size, or a value is of the wrong kind.
    """
    parameters = inspect.signature(made).parameters
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(given.keys() - parameters.keys())
    if unknown:
        raise UserError(f"{place} has keys that a {made.__name__} does not take ({', '.join(unknown[:3])}); {instead}")
    missing = [name for name in sizes if name not in given]
    if missing:
        raise UserError(f"{place} lacks {', '.join(missing)}; copy the model again")
    for key, value in given.items():
        if not _fits(value, parameters[key].default):
            wrong = f"{place} gives {key} as {value!r}, which no {made.__name__} can have"
            raise UserError(f"{wrong}; copy the model again")
    return given


def _fits(value: object, default: object) -> bool:
    """Whether a value is of the kind of an argument's default; counts and sizes are whole and positive."""
    if isinstance(default, tuple):
        if not isinstance(value, list) or len(value) != len(default):
            return False
        return all(_fits(one, like) for one, like in zip(value, default, strict=True))
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return _is_size(value)
    if isinstance(default, float):
        return isinstance(value, float | int) and not isinstance(value, bool)
    if isinstance(default, str):
        return value is None or isinstance(value, str)
    return value is None or _is_size(value)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
