"""One file of a transformer whose native layers may hold several of diffusers' layers, read into diffusers' class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .block_keys import BlockKeys
from .weights import Header, Shapes, from_file, hollow

Configured = Callable[[Header, Shapes], Mapping[str, Any]]  # from the header, and shapes by diffusers' names


def from_native(
    path: Path,
    what: str,
    keys: BlockKeys,
    config_of: Configured,
    make: Callable[[Mapping[str, Any]], nn.Module],
    dtype: torch.dtype,
) -> nn.Module:
    """The model of a file; each weight is cast on its way, so that there is one copy of the model.

    Args:
        what: the model's kind, for messages.
        config_of: with its `num_attention_heads` and `attention_head_dim`.
        make: a new model of a config.

    Raises:
        UserError: as `weights.from_file`.
    """
    own: dict[str, str] = {}
    width = 0

    def plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
        nonlocal width
        own.update(keys.diffusers_names(shapes))
        config = config_of(header, {name: shapes[key] for name, key in own.items()})
        width = config["num_attention_heads"] * config["attention_head_dim"]
        return hollow(lambda: make(config)), own

    def fitted(name: str, tensor: Tensor) -> Tensor:
        return keys.fitted(name, tensor, own[name], width)

    model: nn.Module = from_file(path, what, plan, lambda name: dtype, fitted)
    return model
