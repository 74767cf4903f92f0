"""A Wan transformer from disk: a diffusers folder, or one file with native (ComfyUI) or diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import wan_keys
from .wan_config import config_at, file_config, folder_config
from .weights import Header, Shapes, from_file, from_folder, hollow

TEXT_WEIGHT = "condition_embedder.text_embedder.linear_1.weight"


def load_model(path: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a folder or file, in `dtype` but for what diffusers keeps in float32.

    Raises:
        UserError: it is not there, broken, scaled, of another class, or of a kind that is not supported.
    """
    config_at(path)  # whatever can be refused is, before the weights are read
    return _from_folder(path, dtype) if path.is_dir() else _from_file(path, dtype)


def new_model(config: Mapping[str, Any]) -> nn.Module:
    """A model with random weights."""
    from diffusers import WanTransformer3DModel

    model: nn.Module = WanTransformer3DModel.from_config(dict(config))
    return model


def hollow_model(config: Mapping[str, Any]) -> nn.Module:
    """A model without weights, ready for `load_state_dict(..., assign=True)`."""
    return hollow(lambda: new_model(config))


def as_headless(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a native network, as the same file gives them here: by diffusers' names, without padding.

    Raises:
        UserError: a name that no Wan has, or scaled weights.
    """
    return {name: _as_loaded(name, tensor) for name, tensor in wan_keys.from_native(state).items()}


def _as_loaded(name: str, tensor: Tensor) -> Tensor:
    if name == TEXT_WEIGHT:  # native files are padded with columns of zeros
        used = tensor.detach().float().any(dim=0).nonzero()
        return tensor[:, : int(used.max()) + 1] if len(used) else tensor
    return tensor.float() if stays_wide(name) and tensor.is_floating_point() else tensor


def stays_wide(name: str) -> bool:
    """Whether diffusers keeps this parameter in float32."""
    from diffusers import WanTransformer3DModel

    kept: Sequence[str] = WanTransformer3DModel._keep_in_fp32_modules
    return not set(kept).isdisjoint(name.split("."))


def _from_folder(path: Path, dtype: torch.dtype) -> nn.Module:
    from diffusers import WanTransformer3DModel

    folder, _ = folder_config(path)
    model: nn.Module = from_folder(
        WanTransformer3DModel.from_pretrained, folder, "Wan model", alone=True, torch_dtype=dtype
    )
    return model


def _from_file(path: Path, dtype: torch.dtype) -> nn.Module:
    """Each weight is cast on its way, so that there is one copy of the model."""
    config: dict[str, Any] = {}

    def plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
        own = wan_keys.diffusers_names(shapes)
        config.update(file_config(header, {name: shapes[key] for name, key in own.items()}, path))
        return hollow_model(config), own

    def fitted(name: str, tensor: Tensor) -> Tensor:
        return _unpadded(tensor, config["text_dim"], path) if name == TEXT_WEIGHT else tensor

    model: nn.Module = from_file(
        path,
        "Wan model",
        plan,
        lambda name: torch.float32 if stays_wide(name) else dtype,
        fitted,
    )
    return model


def _unpadded(weight: Tensor, text_dim: int, path: Path) -> Tensor:
    """The text projection without the zero columns that native files are padded with."""
    if weight.shape[1] > text_dim and weight[:, text_dim:].float().any():
        raise UserError(f"{path} says text_dim {text_dim}, but its text embedding is wider; write it again")
    return weight[:, :text_dim]
