"""A paper in each file: pure functions of tensors, its arXiv number on the first line.

A file may also hold the paper's settings, as a class `Settings`, and what it adds to a generator update, as a class
`Added` (see `terms.py`). Both are found here by the file's name, and nowhere else: no list has to be kept. To be found
cheaply, a file imports torch inside its functions.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..sections import Section


@cache
def _members(name: str) -> dict[str, Any]:
    """That attribute of each file that has it, by the file's name."""
    files = [import_module(f".{info.name}", __name__) for info in pkgutil.iter_modules(__path__)]
    return {file.__name__.rpartition(".")[2]: getattr(file, name) for file in files if hasattr(file, name)}


def sections() -> dict[str, type[Section]]:
    """The settings of each paper that has its own."""
    return _members("Settings")


def terms() -> dict[str, Any]:
    """What each paper adds to a generator update: a `terms.Term`."""
    return _members("Added")


def terms_on(recipe: Any) -> set[str]:
    """The papers whose term a recipe asks for."""
    return {name for name, kind in terms().items() if kind.is_on(getattr(recipe, name))}


def clips_for(recipe: Any) -> str:
    """The setting for which prompts alone do not serve a recipe; "" where they do."""
    needs = {
        f"method {recipe.method}": recipe.method != "distribution_matching",
        "first": bool(recipe.first),
        "rollout.source noised_data": recipe.rollout.source == "noised_data",
        **{name: kind.needs_clips and name in terms_on(recipe) for name, kind in terms().items()},
    }
    return next((key for key, needed in needs.items() if needed), "")


def check_terms(recipe: Any) -> None:
    """Whether the terms that a recipe asks for can act.

    Raises:
        ValueError: one can't.
    """
    for name, kind in terms().items():
        if name not in terms_on(recipe):
            continue
        if recipe.method != "distribution_matching":
            raise ValueError(
                f"{name} belongs to method distribution_matching and would do nothing in {recipe.method}; switch it "
                "off, or change method"
            )
        if misfit := kind.misfit(getattr(recipe, name), recipe):
            raise ValueError(misfit)
