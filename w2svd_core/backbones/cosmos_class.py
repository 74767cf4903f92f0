"""diffusers' `CosmosTransformer3DModel`, made ready here and nowhere else: no torchvision, and projected prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from .weights import hollow

CLASS = "CosmosTransformer3DModel"
PROJECTION = "crossattn_proj"  # the module through which a prompt's tokens go first


class Projection(nn.Sequential):
    """A linear layer and what follows; tokens that went through it already pass as they are.

    A prompt's raw tokens are a hundred times as wide as projected ones, so that whoever keeps prompts keeps these.
    """

    def forward(self, text: Tensor) -> Tensor:
        """`b n d` of either width -> projected."""
        taken, given = self[0].in_features, self[0].out_features
        done = text.shape[-1] == given != taken
        found: Tensor = text if done else super().forward(text)  # type: ignore[no-untyped-call]
        return found


def cosmos_class() -> Any:
    """The class of diffusers.

    Its forward pass resizes the padding mask by torchvision, and stops with a NameError where torchvision is not
    installed. Then a stand-in takes that name in its module: the same nearest neighbours, by torch.
    """
    from diffusers import CosmosTransformer3DModel
    from diffusers.models.transformers import transformer_cosmos

    if not hasattr(transformer_cosmos, "transforms"):
        transformer_cosmos.transforms = SimpleNamespace(  # type: ignore[attr-defined]
            InterpolationMode=SimpleNamespace(NEAREST="nearest"), functional=SimpleNamespace(resize=_resize)
        )
    return CosmosTransformer3DModel


def new_model(config: Mapping[str, Any]) -> nn.Module:
    """A model with random weights."""
    return ready(cosmos_class().from_config(dict(config)))


def hollow_model(config: Mapping[str, Any]) -> nn.Module:
    """A model without weights, ready for `load_state_dict(..., assign=True)`."""
    return hollow(lambda: new_model(config))


def ready(model: Any) -> nn.Module:
    """The model, whose projection of prompts lets projected ones pass; names and weights stay."""
    raw = getattr(model, PROJECTION, None)
    if raw is not None:
        setattr(model, PROJECTION, Projection(*raw))
    found: nn.Module = model
    return found


def stays_wide(name: str) -> bool:
    """Whether diffusers keeps this parameter in float32."""
    kept: Sequence[str] = cosmos_class()._keep_in_fp32_modules
    return not set(kept).isdisjoint(name.split("."))


def _resize(mask: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """`b c h w` -> `b c *size`, as torchvision's `resize` of a tensor."""
    resized: Callable[..., Tensor] = interpolate
    return resized(mask, size=tuple(size), mode=interpolation)
