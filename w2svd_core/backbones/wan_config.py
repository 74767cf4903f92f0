"""The config of a Wan transformer on disk: of a folder, in a file's header, or told by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import wan_keys
from .class_config import arguments_in
from .model_config import ConfigReader
from .wan_variants import TWO_EXPERTS, inferred_config, refuse_unsupported, where_to_find

CLASS = "WanTransformer3DModel"
SIZES = (  # what a config must say; for the rest there are defaults that every published model shares
    *("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels"),
    *("text_dim", "freq_dim", "ffn_dim", "num_layers"),
)


def _refuse_two_experts(path: Path) -> None:
    if (path / "transformer_2").is_dir():
        raise UserError(f"{path} is a Wan 2.2 A14B, whose {TWO_EXPERTS}; take one of {where_to_find()}")


def _arguments(config: Mapping[str, Any], place: Path | str) -> dict[str, Any]:
    from diffusers import WanTransformer3DModel

    instead = "name a plain Wan text-to-video or image-to-video model, or update diffusers"
    return arguments_in(config, WanTransformer3DModel, SIZES, place, instead)


READER = ConfigReader(
    CLASS,
    "a Wan model",
    where_to_find,
    _arguments,
    wan_keys.diffusers_names,
    inferred_config,
    refuse_unsupported,
    _refuse_two_experts,
)
config_at, folder_config, file_config = READER.at, READER.of_folder, READER.of_file
