"""Published models: what each is called, where it is, and how a config is known to be one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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


ONE_EXPERT = ("high_noise", "low_noise")  # in the names of Wan 2.2 A14B's files, whose shapes are Wan 2.1 14B's


def told_by_name(place: str) -> str:
    """What the name of a model's file says against training it, where its shapes do not; "" = nothing."""
    name = Path(place).name.lower()
    if not any(part in name for part in ONE_EXPERT):
        return ""
    return (
        f"{Path(place).name} is named as one of the two experts of Wan 2.2 A14B, which knows half of the noise levels "
        "and is asked at all of them; take Wan 2.1 14B or Wan 2.2 TI2V 5B, both experts are not supported yet"
    )


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
