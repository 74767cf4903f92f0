"""A Wan transformer from disk: a diffusers folder, or one file with native (ComfyUI) or diffusers' names."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import opened_safetensors
from . import wan_keys
from .wan_variants import inferred_config, refuse_two_experts, refuse_unsupported, where_to_find

CLASS = "WanTransformer3DModel"
SIZES = (  # what a config must say; for the rest there are defaults that every published model shares
    *("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels"),
    *("text_dim", "freq_dim", "ffn_dim", "num_layers"),
)
PLAIN = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # safetensors' names of numbers that can be cast
TEXT_WEIGHT = "condition_embedder.text_embedder.linear_1.weight"


def load_model(path: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a folder or file, in `dtype` but for what diffusers keeps in float32.

    Raises:
        UserError: it is not there, broken, scaled, of another class, or of a kind that is not supported.
    """
    if not path.exists():
        raise UserError(
            f"{path} is not there; model.path takes a diffusers folder (with transformer/config.json) or a "
            f".safetensors file of a Wan model, published as {where_to_find()}"
        )
    return _from_folder(path, dtype) if path.is_dir() else _from_file(path, dtype)


def new_model(config: Mapping[str, Any]) -> nn.Module:
    """A model with random weights."""
    from diffusers import WanTransformer3DModel

    model: nn.Module = WanTransformer3DModel.from_config(dict(config))
    return model


def hollow_model(config: Mapping[str, Any]) -> nn.Module:
    """A model without weights (they are on the meta device), ready for `load_state_dict(..., assign=True)`."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):  # the tables of positions are made, not loaded
        return new_model(config)


def config_of(model: nn.Module) -> dict[str, Any]:
    """The arguments that the model was made with; without diffusers' own entries, such as where it was loaded from."""
    return {k: v for k, v in dict(model.config).items() if not k.startswith("_")}  # type: ignore[arg-type]


def stays_wide(model: nn.Module, name: str) -> bool:
    """Whether diffusers keeps this parameter in float32."""
    kept: Sequence[str] = model._keep_in_fp32_modules  # type: ignore[assignment]
    return not set(kept).isdisjoint(name.split("."))


def _from_folder(path: Path, dtype: torch.dtype) -> nn.Module:
    from diffusers import WanTransformer3DModel

    refuse_two_experts(path)
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    place = folder / "config.json"
    config = _read_config(place.read_bytes(), place) if place.is_file() else {}
    if config.get("_class_name") != CLASS:
        raise UserError(f"{path} is not a diffusers folder of a {CLASS}; check model.path")
    refuse_unsupported(_arguments(config, place), path)
    model: nn.Module
    try:
        model, found = WanTransformer3DModel.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} could not be read as a Wan model ({error}); copy it again") from error
    if found["missing_keys"] or found["unexpected_keys"]:
        raise UserError(f"{folder} does not hold the Wan model that its config.json describes; copy it again")
    return model


def _from_file(path: Path, dtype: torch.dtype) -> nn.Module:
    """Tensor by tensor out of mapped memory, each cast on its way, so that there is one copy of the model."""
    with opened_safetensors(path) as file:
        try:
            own = wan_keys.diffusers_names(file.keys())
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        parts = {name: file.get_slice(key) for name, key in own.items()}
        for name, part in parts.items():
            if part.get_dtype() not in PLAIN:
                raise UserError(
                    f"{path} holds quantised weights ({own[name]} in {part.get_dtype()}); "
                    "use the bf16, fp16 or plain fp8 file of the same model"
                )
        config = _config_in(dict(file.metadata() or {}), {n: part.get_shape() for n, part in parts.items()}, path)
        model = hollow_model(config)
        weights = {}
        for name, key in own.items():
            tensor = file.get_tensor(key)
            if name == TEXT_WEIGHT:
                tensor = _unpadded(tensor, config["text_dim"], path)
            weights[name] = tensor.to(torch.float32 if stays_wide(model, name) else dtype, copy=True)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the Wan model that its sizes describe; copy it again") from error
    return model


def _config_in(header: Mapping[str, str], shapes: Mapping[str, Sequence[int]], path: Path) -> dict[str, Any]:
    """The config that our own files carry in the header, else the one that the shapes tell."""
    if "config" in header:
        place = f"the config in the header of {path}"
        config = _arguments(_read_config(header["config"], place), place)
    else:
        config = inferred_config(shapes, path)
    refuse_unsupported(config, path)
    return config


def _unpadded(weight: Tensor, text_dim: int, path: Path) -> Tensor:
    """The text projection without the zero columns that native files are padded with."""
    if weight.shape[1] > text_dim and weight[:, text_dim:].float().any():
        raise UserError(f"{path} says text_dim {text_dim}, but its text embedding is wider; write it again")
    return weight[:, :text_dim]


def _read_config(text: str | bytes, place: Path | str) -> dict[str, Any]:
    """A config as it stands there.

    Raises:
        UserError: it is not JSON, or not an object.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}); copy the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{place} is not a JSON object; copy the model again")
    return config


def _arguments(config: Mapping[str, Any], place: Path | str) -> dict[str, Any]:
    """The arguments of a `WanTransformer3DModel` that a config holds.

    Raises:
        UserError: it has a key that the class does not know, lacks a size, or a value is of the wrong kind.
    """
    from diffusers import WanTransformer3DModel

    parameters = inspect.signature(WanTransformer3DModel).parameters
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(given.keys() - parameters.keys())
    if unknown:
        raise UserError(
            f"{place} has keys that a {CLASS} does not take ({', '.join(unknown[:3])}); "
            "name a plain Wan text-to-video or image-to-video model, or update diffusers"
        )
    missing = [name for name in SIZES if name not in given]
    if missing:
        raise UserError(f"{place} lacks {', '.join(missing)}; copy the model again")
    for key, value in given.items():
        if not _fits(value, parameters[key].default):
            raise UserError(f"{place} gives {key} as {value!r}, which no {CLASS} can have; copy the model again")
    return given


def _fits(value: object, default: object) -> bool:
    """Whether a value is of the kind of an argument's default; counts and sizes are whole and positive."""
    if isinstance(default, tuple):
        return isinstance(value, list) and len(value) == len(default) and all(map(_is_size, value))
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
