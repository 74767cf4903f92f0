"""What the rest of the house may know of a model family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..flow import Process
from ..geometry import LatentGeometry


@dataclass(frozen=True)
class Architecture:
    """The size of a model that is trained from scratch."""

    heads: int
    head_dim: int
    ffn_dim: int
    layers: int
    text_dim: int


class KeyMap(Protocol):
    """Names of one model family's modules; an unknown name raises `UserError`."""

    def native_module(self, name: str, /) -> str: ...

    def diffusers_module(self, name: str, /) -> str: ...

    def native_alpha(self, name: str, /) -> bool:
        """Whether readers of native files honour `.alpha` beside this diffusers module."""
        ...


class Backbone(Protocol):
    """A model family: its signature, time convention, prediction type, latents and names.

    Attributes:
        process: what the model's output means.
        geometry: the latents it takes.
        lora_targets: module names (endings) that take an adapter.
        keys: module names in native files.
    """

    name: str
    process: Process
    geometry: LatentGeometry
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

    def check_fit(self, model: nn.Module, latents: LatentGeometry, condition: Condition) -> None:
        """Whether the model takes these latents and conditions.

        Raises:
            UserError: it does not; the sentence names both sides.
        """
        ...

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """The repeated blocks, which make nearly all of the work."""
        ...

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The model's raw output, in the process's convention. x_t `b c f h w`; sigma (b,) in [0, 1]."""
        ...

    def save_folder(self, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
        """Write the model as a diffusers folder, in `dtype` but for what diffusers itself keeps in float32."""
        ...

    def native_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's weights under native names."""
        ...

    def native_metadata(self, model: nn.Module) -> Mapping[str, str]:
        """What the header of a native file must say so that `load` can read it back."""
        ...
