"""A HunyuanVideo from disk: a diffusers folder, or one file with Tencent's, ComfyUI's or diffusers' names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import hunyuan_keys
from .block_loading import from_native
from .hunyuan_config import config_at, file_config, folder_config
from .hunyuan_variants import kind_of
from .weights import Header, Shapes, from_folder

WHAT = "HunyuanVideo"
as_headless = hunyuan_keys.as_headless


def load_model(path: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a folder or file, in `dtype`.

    Raises:
        UserError: it is not there, broken, scaled, of another class, or of a kind that is not supported.
    """
    config_at(path)  # whatever can be refused is, before the weights are read
    return _from_folder(path, dtype) if path.is_dir() else _from_file(path, dtype)


def new_model(config: Mapping[str, Any]) -> nn.Module:
    """A model with random weights."""
    from diffusers import HunyuanVideoTransformer3DModel

    model: nn.Module = HunyuanVideoTransformer3DModel.from_config(dict(config))
    return model


def _from_folder(path: Path, dtype: torch.dtype) -> nn.Module:
    from diffusers import HunyuanVideoTransformer3DModel

    folder, _ = folder_config(path)
    model: nn.Module = from_folder(
        HunyuanVideoTransformer3DModel.from_pretrained, folder, WHAT, alone=True, torch_dtype=dtype
    )
    return model


def _from_file(path: Path, dtype: torch.dtype) -> nn.Module:
    def config_of(header: Header, shapes: Shapes) -> Mapping[str, Any]:
        config = file_config(header, shapes, path)
        if "config" not in header and kind_of(config) == "t2v":
            print(
                f"note: {path} does not say what it is, and image-to-video by token replacement has the shapes of "
                "text-to-video; it is taken for text-to-video (for the other give model.path the diffusers folder)",
                file=sys.stderr,
            )
        return config

    return from_native(path, WHAT, hunyuan_keys.KEYS, config_of, new_model, dtype)
