"""Published models: what each is called, where it is, and how a config is known to be one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from .class_config import bundled_config


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        name: as people call it.
        config: its file in `configs/`.
        repository: where it is published for diffusers.
        gigabytes: of the transformer in 16 bits.
    """

    name: str
    config: str
    repository: str
    gigabytes: float


Variant = TypeVar("Variant", bound=Published)


@cache
def published_config(variant: Published) -> Mapping[str, Any]:
    """The arguments of its class that a published model was made with."""
    return bundled_config(variant.config)


def recognised(config: Mapping[str, Any], variants: Sequence[Variant], told_by: Sequence[str]) -> Variant | None:
    """The published model with these sizes; None for one of another size.

    Args:
        told_by: keys of the config in which the variants differ.
    """
    for variant in variants:
        known = published_config(variant)
        if all(config.get(key) == known[key] for key in told_by):
            return variant
    return None


def where_to_find(variants: Sequence[Published]) -> str:
    """The published models, in words."""
    return ", ".join(f"{v.repository} ({v.name}, {v.gigabytes:g} GB in 16 bits)" for v in variants)


def names_of(variants: Sequence[Published]) -> str:
    """Their names, in words."""
    return ", ".join(v.name for v in variants)
