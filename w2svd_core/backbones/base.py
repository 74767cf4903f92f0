"""What the rest of the house may know of a model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..data.codec import LatentGeometry
from ..flow import Process
from ..lora_files import KeyMap


@dataclass(frozen=True)
class Architecture:
    """The size of a model that is trained from scratch."""

    heads: int
    head_dim: int
    ffn_dim: int
    layers: int
    text_dim: int


class Backbone(Protocol):
    """A model family: its signature, time convention, prediction type, latents and names.

    Attributes:
        process: what the model's output means.
        geometry: the latents it takes.
        condition_fields: names in the `Condition` that it reads.
        lora_targets: module names (endings) that take an adapter.
        keys: module names in native files.
    """

    name: str
    process: Process
    geometry: LatentGeometry
    condition_fields: tuple[str, ...]
    lora_targets: tuple[str, ...]
    keys: KeyMap

    def build(self, architecture: Architecture) -> nn.Module:
        """A new model with random weights."""
        ...

    def load(self, path: Path, dtype: torch.dtype) -> nn.Module:
        """A model from a folder or a native file.

        Raises:
            UserError: it is not there, broken, or of another family.
        """
        ...

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The model's raw output, in the process's convention. x_t `b c f h w`; sigma (b,) in [0, 1]."""
        ...

    def save_folder(self, model: nn.Module, folder: Path) -> None:
        """Write the model as a diffusers folder."""
        ...

    def native_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's weights under native names."""
        ...

    def native_metadata(self, model: nn.Module) -> Mapping[str, str]:
        """What the header of a native file must say so that `load` can read it back."""
        ...
