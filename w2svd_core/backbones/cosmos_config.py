"""The config of a Cosmos transformer on disk: of a folder, in a file's header, or told by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import cosmos_keys
from .class_config import arguments_in
from .cosmos_class import CLASS, cosmos_class
from .cosmos_variants import inferred_config, refuse_unsupported, where_to_find
from .model_config import ConfigReader

SIZES = (  # what a config must say; for the rest there are defaults
    *("in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_layers"),
    *("text_embed_dim", "patch_size", "rope_scale"),
)


def _arguments(config: Mapping[str, Any], place: Path | str) -> dict[str, Any]:
    return arguments_in(config, cosmos_class(), SIZES, place, "name a Cosmos-Predict2.5, or update diffusers")


READER = ConfigReader(
    CLASS,
    "a Cosmos-Predict2.5",
    where_to_find,
    _arguments,
    cosmos_keys.diffusers_names,
    inferred_config,
    refuse_unsupported,
)
config_at, folder_config, file_config = READER.at, READER.of_folder, READER.of_file
