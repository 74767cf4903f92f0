"""Wan text-to-video: diffusers' `WanTransformer3DModel`, from a diffusers folder or a native (ComfyUI) file."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import UserError
from ..files import read_safetensors
from ..flow import Process, RectifiedFlow
from ..geometry import LatentGeometry
from . import wan_keys
from .base import Architecture, KeyMap

NATIVE_TEXT_DIM = 4096  # what native loaders expect of UMT5; narrower prompt embeddings are zero-padded to it
CLASS = "WanTransformer3DModel"
SIZES = (  # what a config must say; for the rest there are defaults that every published model shares
    *("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels"),
    *("text_dim", "freq_dim", "ffn_dim", "num_layers"),
)


class WanBackbone:
    """Wan 2.1 text-to-video. The model predicts eps - x0 and takes its time as 1000 sigma."""

    name = "wan"
    process: Process = RectifiedFlow()
    geometry = LatentGeometry(channels=16, space=8, time=4, patch=2)
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
    keys: KeyMap = wan_keys

    def build(self, architecture: Architecture) -> nn.Module:
        a = architecture
        return self._model(
            {
                "patch_size": [1, 2, 2],
                "num_attention_heads": a.heads,
                "attention_head_dim": a.head_dim,
                "in_channels": self.geometry.channels,
                "out_channels": self.geometry.channels,
                "text_dim": a.text_dim,
                "freq_dim": 256,
                "ffn_dim": a.ffn_dim,
                "num_layers": a.layers,
            }
        )

    def load(self, path: Path, dtype: torch.dtype) -> nn.Module:
        if path.is_dir():
            return self._load_folder(path, dtype)
        state, metadata = read_safetensors(path)
        if "config" not in metadata:
            raise UserError(
                f"{path} does not say its architecture; give model.path a diffusers folder, "
                "or a native file that this project wrote"
            )
        place = f"the config in the header of {path}"
        config = _arguments(_read_config(metadata["config"], place), place)
        model = self._filled(config, wan_keys.from_native(state), path)
        return _cast(model, dtype)

    def _load_folder(self, path: Path, dtype: torch.dtype) -> nn.Module:
        from diffusers import WanTransformer3DModel

        folder = path / "transformer" if (path / "transformer").is_dir() else path
        place = folder / "config.json"
        config = _read_config(place.read_bytes(), place) if place.is_file() else {}
        if config.get("_class_name") != CLASS:
            raise UserError(f"{path} is not a diffusers folder of a {CLASS}; check model.path")
        _arguments(config, place)
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

    def _filled(self, config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> nn.Module:
        model = self._model(config)
        name = "condition_embedder.text_embedder.linear_1.weight"
        narrow = config["text_dim"]
        weights = {key: value.float() for key, value in state.items()}
        if name in weights and weights[name].shape[1] > narrow:  # the zero columns of a padded text width
            if weights[name][:, narrow:].any():
                raise UserError(f"{path} says text_dim {narrow}, but its text embedding is wider; write it again")
            weights[name] = weights[name][:, :narrow].clone()
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"{path} does not hold the Wan model that its header describes; copy it again") from error
        return model

    @staticmethod
    def _model(config: Mapping[str, Any]) -> nn.Module:
        from diffusers import WanTransformer3DModel

        model: nn.Module = WanTransformer3DModel.from_config(dict(config))
        return model

    def check_fit(self, model: nn.Module, latents: LatentGeometry, condition: Condition) -> None:
        config: Any = model.config
        if latents.channels != config.in_channels:
            raise UserError(
                f"the model takes latents of {config.in_channels} channels, the codec makes {latents.channels}; "
                "name a model of the codec's kind in model.path"
            )
        width = condition.fields["text"].shape[-1]
        if width != config.text_dim:
            raise UserError(
                f"the model takes prompt embeddings {config.text_dim} wide, the prompt encoder makes them {width} "
                "wide; name a model of the encoder's kind in model.path"
            )

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        found: nn.ModuleList = model.blocks  # type: ignore[assignment]
        return found

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        dtype = model.get_parameter("patch_embedding.weight").dtype  # diffusers keeps some others in float32
        output: Tensor = model(
            hidden_states=x_t.to(dtype),
            timestep=1000 * sigma.to(x_t.device).expand(len(x_t)),
            encoder_hidden_states=condition.fields["text"].to(dtype),
            return_dict=False,
        )[0]
        return output

    def save_folder(self, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
        weights = {name: w if _stays_wide(model, name) else w.to(dtype) for name, w in model.state_dict().items()}
        with torch.device("meta"):
            twin = self._model(_config_of(model))  # the training goes on with the model's own numbers
        twin.load_state_dict(weights, assign=True)
        twin.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]

    def native_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        return wan_keys.pad_text_dim(wan_keys.to_native(model.state_dict()), NATIVE_TEXT_DIM)

    def native_metadata(self, model: nn.Module) -> dict[str, str]:
        """What a native file's header must say so that `load` can read it back."""
        return {"config": json.dumps(_config_of(model))}


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in `dtype`, but for what diffusers keeps in float32 when it loads a folder itself."""
    for name, parameter in model.named_parameters():
        if not _stays_wide(model, name):
            parameter.data = parameter.data.to(dtype)
    return model


def _stays_wide(model: nn.Module, name: str) -> bool:
    """Whether diffusers keeps this parameter in float32."""
    kept: Sequence[str] = model._keep_in_fp32_modules  # type: ignore[assignment]
    return not set(kept).isdisjoint(name.split("."))


def _config_of(model: nn.Module) -> dict[str, Any]:
    """The arguments that the model was made with; without diffusers' own entries, such as where it was loaded from."""
    return {k: v for k, v in dict(model.config).items() if not k.startswith("_")}  # type: ignore[arg-type]


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
            "name a plain Wan text-to-video model, or update diffusers"
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


BACKBONE = WanBackbone()
