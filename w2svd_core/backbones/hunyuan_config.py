"""The config of a HunyuanVideo on disk: of a folder, in a file's header, or told by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import hunyuan_keys
from .class_config import arguments_in
from .hunyuan_variants import inferred_config, refuse_unsupported, where_to_find
from .model_config import ConfigReader

CLASS = "HunyuanVideoTransformer3DModel"
SIZES = (  # what a config must say; for the rest there are defaults that every published model shares
    *("in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_layers", "num_single_layers"),
    *("patch_size", "patch_size_t", "guidance_embeds", "text_embed_dim", "pooled_projection_dim"),
)
WAY = "image_condition_type"  # a word or nothing


def _arguments(config: Mapping[str, Any], place: Path | str) -> dict[str, Any]:
    from diffusers import HunyuanVideoTransformer3DModel

    instead = "name a plain HunyuanVideo text-to-video or image-to-video model, or update diffusers"
    sizes = {key: value for key, value in config.items() if key != WAY}
    known = arguments_in(sizes, HunyuanVideoTransformer3DModel, SIZES, place, instead)
    return {**known, WAY: config.get(WAY)}


READER = ConfigReader(
    CLASS,
    "a HunyuanVideo",
    where_to_find,
    _arguments,
    hunyuan_keys.diffusers_names,
    inferred_config,
    refuse_unsupported,
)
config_at, folder_config, file_config = READER.at, READER.of_folder, READER.of_file
