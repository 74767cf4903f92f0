"""diffusers' `HunyuanVideo15Transformer3DModel`, made ready here and nowhere else: it keeps its time exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

CLASS = "HunyuanVideo15Transformer3DModel"
TIME = "time_embed"  # the module that embeds the time


class ExactTime(nn.Module):
    """diffusers' time embedding for a time of any precision: the embedding takes the weights' type, not the time.

    diffusers' own needs a time of the weights' type, so that in bfloat16 937.5 becomes 936 and 999 becomes 1000.
    ComfyUI keeps it in float32, as is done here; parameters keep their names.
    """

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.time_proj, self.timestep_embedder = own.time_proj, own.timestep_embedder

    def forward(self, timestep: Tensor, timestep_r: Tensor | None = None) -> Tensor:
        """(b,) -> (b, width). There is no second time: no model that takes one is let in."""
        dtype = self.timestep_embedder.linear_1.weight.dtype
        found: Tensor = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        return found


def hunyuan15_class() -> Any:
    """The class of diffusers."""
    from diffusers import HunyuanVideo15Transformer3DModel

    return HunyuanVideo15Transformer3DModel


def new_model(config: Mapping[str, Any]) -> nn.Module:
    """A model with random weights."""
    return ready(hunyuan15_class().from_config(dict(config)))


def ready(model: Any) -> nn.Module:
    """The model with a time embedding that takes a time as it is; names and weights stay."""
    setattr(model, TIME, ExactTime(getattr(model, TIME)))
    found: nn.Module = model
    return found


def time_of(sigma: Tensor, rows: int, device: torch.device) -> Tensor:
    """1000 sigma (rows,), in float32."""
    return 1000 * sigma.to(device, torch.float32).expand(rows)
