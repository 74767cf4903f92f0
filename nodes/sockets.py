"""What travels over the extension's own sockets: frozen values, names of models and never their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .compat import io

MODEL, DATASET, SHIFT, RECIPE = (io.Custom(f"W2SVD_{name}") for name in ("MODEL", "DATASET", "SHIFT", "RECIPE"))


@dataclass(frozen=True)
class ModelHandle:
    """A model by name, for Train: its weights load there.

    Attributes:
        path: as `model.path` of a recipe.
        settings: the recipe's other settings that belong to the model (where its encoders are), by key.
    """

    path: str = "bundled"
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """What to train on.

    Attributes:
        settings: the recipe's `data.*`, by key.
        prompts: to train on without clips; empty with clips.
    """

    settings: Mapping[str, object]
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """What to train a native MODEL on: clips or prompts that other nodes have encoded.

    Attributes:
        fps: frames a second.
        conditioning: of each clip, or one for all.
        negative: what guidance leads away from.
        latents: the clips; empty to train on prompts alone.
        size: for prompts alone, an empty LATENT as large as the clips are to be.
        captions: what the clips show; may be empty.
    """

    fps: float
    conditioning: tuple[Any, ...]
    negative: Any
    latents: tuple[Any, ...] = ()
    size: Any = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shift:
    """The weak-to-strong shift: settings of `matching`, by key."""

    settings: Mapping[str, object]


@dataclass(frozen=True)
class Values:
    """Settings of a recipe, by key."""

    settings: Mapping[str, object]
