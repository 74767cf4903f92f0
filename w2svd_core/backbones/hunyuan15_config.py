"""The config of a HunyuanVideo 1.5 on disk: of a folder, in a file's header, or told by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import hunyuan15_keys
from .class_config import arguments_in
from .hunyuan15_class import CLASS, hunyuan15_class
from .hunyuan15_variants import inferred_config, refuse_unsupported, where_to_find
from .model_config import ConfigReader

SIZES = (  # what a config must say; for the rest there are defaults that every published model shares
    *("in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_layers", "patch_size"),
    *("text_embed_dim", "text_embed_2_dim", "image_embed_dim", "target_size", "task_type"),
)


def _arguments(config: Mapping[str, Any], place: Path | str) -> dict[str, Any]:
    return arguments_in(config, hunyuan15_class(), SIZES, place, "name a plain HunyuanVideo 1.5, or update diffusers")


READER = ConfigReader(
    CLASS,
    "a HunyuanVideo 1.5",
    where_to_find,
    _arguments,
    hunyuan15_keys.diffusers_names,
    inferred_config,
    refuse_unsupported,
)
config_at, folder_config, file_config = READER.at, READER.of_folder, READER.of_file
