"""A HunyuanVideo 1.5 from disk: a diffusers folder, or one file with Tencent's, ComfyUI's or diffusers' names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import hunyuan15_keys
from .block_loading import from_native
from .hunyuan15_class import hunyuan15_class, new_model, ready
from .hunyuan15_config import config_at, file_config, folder_config
from .weights import Header, Shapes, from_folder

WHAT = "HunyuanVideo 1.5"
as_headless = hunyuan15_keys.as_headless


def load_model(path: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a folder or file, in `dtype`.

    Raises:
        UserError: it is not there, broken, scaled, of another class, or of a kind that is not supported.
    """
    config_at(path)  # whatever can be refused is, before the weights are read
    return _from_folder(path, dtype) if path.is_dir() else _from_file(path, dtype)


def _from_folder(path: Path, dtype: torch.dtype) -> nn.Module:
    folder, _ = folder_config(path)
    return ready(from_folder(hunyuan15_class().from_pretrained, folder, WHAT, alone=True, torch_dtype=dtype))


def _from_file(path: Path, dtype: torch.dtype) -> nn.Module:
    def config_of(header: Header, shapes: Shapes) -> Mapping[str, Any]:
        if "config" not in header:
            print(
                f"note: {path} does not say what it is, and every HunyuanVideo 1.5 has the same shapes; it is taken "
                "for 480p (whose shift is 5), and model.first_frame says whether clips start from a frame",
                file=sys.stderr,
            )
        return file_config(header, shapes, path)

    return from_native(path, WHAT, hunyuan15_keys.KEYS, config_of, new_model, dtype)
