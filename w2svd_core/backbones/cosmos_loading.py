"""A Cosmos transformer from disk: a diffusers folder, or one file with NVIDIA's own or diffusers' names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import nn

from ..errors import UserError
from ..files import opened_safetensors
from . import cosmos_keys
from .cosmos_class import PROJECTION, Projection, cosmos_class, hollow_model, ready, stays_wide
from .cosmos_config import config_at, file_config, folder_config
from .cosmos_variants import recognised
from .weights import Header, Shapes, from_file, from_folder

WHAT = "Cosmos model"
UNCHECKED = (
    "note: NVIDIA's own pipeline checks prompts and clips by its guardrail (cosmos_guardrail), and this program does "
    "not: whoever uses a Cosmos or what is distilled from it must see to what the NVIDIA Open Model License asks for"
)


def load_model(path: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a folder or file, in `dtype` but for what diffusers keeps in float32.

    Of a published size it says once on stderr what NVIDIA's pipeline does beside it and this program does not.

    Raises:
        UserError: it is not there, broken, scaled, of another class, or of a kind that is not supported.
    """
    config = config_at(path)  # whatever can be refused is, before the weights are read
    model = _from_folder(path, dtype) if path.is_dir() else _from_file(path, dtype)
    if recognised(config):
        _say_once(UNCHECKED)
    return model


def load_projection(path: Path, dtype: torch.dtype) -> Projection | None:
    """The part of a model through which prompts go first, alone; None for a model without one.

    Raises:
        UserError: as `load_model`.
    """
    if not config_at(path).get("use_crossattn_projection", False):
        return None
    found = {}
    for file in _weights(path):
        with opened_safetensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                name = cosmos_keys.strip_prefix(key)
                if name.startswith(f"{PROJECTION}."):
                    found[name.removeprefix(f"{PROJECTION}.")] = opened.get_tensor(key).to(dtype)
    if set(found) != {"0.weight", "0.bias"}:
        raise UserError(f"{path} lacks its {PROJECTION}, so it does not hold a whole Cosmos model; copy it again")
    given, taken = found["0.weight"].shape
    with torch.device("meta"):
        made = Projection(nn.Linear(taken, given), nn.GELU())
    made.load_state_dict(found, assign=True)
    return made


def _weights(path: Path) -> list[Path]:
    return sorted(folder_config(path)[0].glob("*.safetensors")) if path.is_dir() else [path]


def _from_folder(path: Path, dtype: torch.dtype) -> nn.Module:
    folder, _ = folder_config(path)
    return ready(from_folder(cosmos_class().from_pretrained, folder, WHAT, alone=True, torch_dtype=dtype))


def _from_file(path: Path, dtype: torch.dtype) -> nn.Module:
    """Each weight is cast on its way, so that there is one copy of the model."""

    def plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
        own = cosmos_keys.diffusers_names(shapes)
        config = file_config(header, {name: shapes[key] for name, key in own.items()}, path)
        return hollow_model(config), own

    model: nn.Module = from_file(path, WHAT, plan, lambda name: torch.float32 if stays_wide(name) else dtype)
    return model


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)
