"""The config of a Wan transformer on disk: of a folder, in a file's header, or told by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import opened_safetensors
from . import wan_keys
from .class_config import arguments_in
from .wan_variants import TWO_EXPERTS, inferred_config, refuse_unsupported, where_to_find
from .weights import read_json

CLASS = "WanTransformer3DModel"
SIZES = (  # what a config must say; for the rest there are defaults that every published model shares
    *("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels"),
    *("text_dim", "freq_dim", "ffn_dim", "num_layers"),
)


def config_at(path: Path) -> dict[str, Any]:
    """The config of a transformer on disk, without its weights.

    Raises:
        UserError: it is not there, no Wan, or of a kind that is not supported.
    """
    if not path.exists():
        raise UserError(
            f"{path} is not there; model.path takes a diffusers folder (with transformer/config.json) or a "
            f".safetensors file of a Wan model, published as {where_to_find()}"
        )
    if path.is_dir():
        return folder_config(path)[1]
    with opened_safetensors(path) as file:
        try:
            own = wan_keys.diffusers_names(file.keys())
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        shapes = {name: file.get_slice(key).get_shape() for name, key in own.items()}
        return file_config(dict(file.metadata() or {}), shapes, path)


def folder_config(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a transformer, or of the pipeline that it belongs to: where its weights are, and its config.

    Raises:
        UserError: no Wan, or of a kind that is not supported.
    """
    if (path / "transformer_2").is_dir():
        raise UserError(f"{path} is a Wan 2.2 A14B, whose {TWO_EXPERTS}; take one of {where_to_find()}")
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    place = folder / "config.json"
    config = read_json(place.read_bytes(), place) if place.is_file() else {}
    if config.get("_class_name") != CLASS:
        raise UserError(
            f"{path} is not a diffusers folder of a {CLASS} (with transformer/config.json); model.path takes one, or a "
            f".safetensors file of a Wan model, published as {where_to_find()}"
        )
    known = _arguments(config, place)
    refuse_unsupported(known, path)
    return folder, known


def file_config(header: Mapping[str, str], shapes: Mapping[str, Sequence[int]], path: Path) -> dict[str, Any]:
    """The config that our own files carry in the header, else the one that the shapes tell."""
    if "config" in header:
        place = f"the config in the header of {path}"
        config = _arguments(read_json(header["config"], place), place)
    else:
        config = inferred_config(shapes, path)
    refuse_unsupported(config, path)
    return config


def _arguments(config: Mapping[str, Any], place: Path | str) -> dict[str, Any]:
    from diffusers import WanTransformer3DModel

    instead = "name a plain Wan text-to-video or image-to-video model, or update diffusers"
    return arguments_in(config, WanTransformer3DModel, SIZES, place, instead)
