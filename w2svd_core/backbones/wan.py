"""Wan text-to-video: diffusers' `WanTransformer3DModel`, from a diffusers folder or a native (ComfyUI) file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..data.codec import LatentGeometry
from ..errors import UserError
from ..files import read_safetensors
from ..flow import Process, RectifiedFlow
from ..lora_files import KeyMap
from . import wan_keys
from .base import Architecture

NATIVE_TEXT_DIM = 4096  # what native loaders expect of UMT5; narrower prompt embeddings are zero-padded to it


class WanBackbone:
    """Wan 2.1 text-to-video. The model predicts eps - x0 and takes its time as 1000 sigma."""

    name = "wan"
    process: Process = RectifiedFlow()
    geometry = LatentGeometry(channels=16, space=8, time=4, patch=2)
    condition_fields: tuple[str, ...] = ("text",)
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
        model = self._filled(json.loads(metadata["config"]), wan_keys.from_native(state), path)
        return _cast(model, dtype)

    def _load_folder(self, path: Path, dtype: torch.dtype) -> nn.Module:
        from diffusers import WanTransformer3DModel

        folder = path / "transformer" if (path / "transformer").is_dir() else path
        config = folder / "config.json"
        if not config.is_file() or json.loads(config.read_text()).get("_class_name") != "WanTransformer3DModel":
            raise UserError(f"{path} is not a diffusers folder of a WanTransformer3DModel; check model.path")
        try:
            model: nn.Module = WanTransformer3DModel.from_pretrained(
                folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder} could not be read as a Wan model ({error}); copy it again") from error
        return model

    def _filled(self, config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> nn.Module:
        model = self._model(config)
        name = "condition_embedder.text_embedder.linear_1.weight"
        narrow = int(config["text_dim"])
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

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        dtype = model.get_parameter("patch_embedding.weight").dtype  # diffusers keeps some others in float32
        output: Tensor = model(
            hidden_states=x_t.to(dtype),
            timestep=1000 * sigma.to(x_t.device).expand(len(x_t)),
            encoder_hidden_states=condition.fields["text"].to(dtype),
            return_dict=False,
        )[0]
        return output

    def save_folder(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]

    def native_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        return wan_keys.pad_text_dim(wan_keys.to_native(model.state_dict()), NATIVE_TEXT_DIM)

    def native_metadata(self, model: nn.Module) -> dict[str, str]:
        """What a native file's header must say so that `load` can read it back."""
        config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}  # type: ignore[arg-type]
        return {"config": json.dumps(config)}


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in `dtype`, but for what diffusers keeps in float32 when it loads a folder itself."""
    kept: Sequence[str] = model._keep_in_fp32_modules  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        if not set(kept) & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model


BACKBONE = WanBackbone()
