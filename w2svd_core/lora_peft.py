"""A LoRA in and out of peft's layers.

In memory a LoRA is `dict[diffusers module name, LoraPair]`, as in `lora_files`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .lora_pairs import LoraPair


def pairs_from_peft(model: nn.Module, adapter: str) -> dict[str, LoraPair]:
    """Copies (CPU, own precision) of a peft adapter's matrices; alpha as configured, not as a role set it.

    Raises:
        UserError: the model has no such adapter, or it is not a plain LoRA of linear layers.
    """
    pairs: dict[str, LoraPair] = {}
    for name, layer in _layers(model, adapter):
        down, up = layer.lora_A[adapter], layer.lora_B[adapter]
        if not isinstance(down, nn.Linear) or up.bias is not None or adapter in layer.lora_magnitude_vector:
            raise UserError(f"the adapter {adapter} is not a plain LoRA at {name}; use linear layers, no bias, no DoRA")
        pairs[name] = LoraPair(_copy(down.weight), _copy(up.weight), _alpha(layer, adapter))
    return pairs


def load_into_peft(model: nn.Module, adapter: str, pairs: Mapping[str, LoraPair]) -> tuple[list[str], list[str]]:
    """Fill an adapter that is already on the model, so that it has exactly the effect of `pairs`.

    Rank, alpha and scale of the layers stay: where alpha / r differs the ratio goes into `up`, a smaller rank
    leaves the other rows of `down` as they are with zeros in `up`. Layers without a pair get a zero `up`.

    Returns:
        Names in `pairs` that were loaded, and names that the adapter has no layer for.

    Raises:
        UserError: no such adapter, nothing matches, or a pair does not fit; nothing was changed then.
    """
    layers = dict(_layers(model, adapter))
    matched, unmatched = [n for n in pairs if n in layers], [n for n in pairs if n not in layers]
    if not matched:
        raise UserError(
            f"none of the LoRA's layers ({', '.join(unmatched[:3])}) is in the adapter {adapter}; "
            "is it for another model?"
        )
    for name in matched:
        pair, down, up = pairs[name], layers[name].lora_A[adapter].weight, layers[name].lora_B[adapter].weight
        if pair.down.shape[1:] != down.shape[1:] or pair.up.shape[0] != up.shape[0]:
            raise UserError(
                f"the LoRA's layer {name} is {pair.down.shape[1]} -> {pair.up.shape[0]} wide, the model's "
                f"{down.shape[1]} -> {up.shape[0]}; it is for another model"
            )
        if pair.rank > down.shape[0]:
            raise UserError(
                f"the LoRA has rank {pair.rank} at {name}, the adapter {down.shape[0]}; set rank {pair.rank}"
            )
    with torch.no_grad():
        for name, layer in layers.items():
            down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            if name not in pairs:
                up.zero_()
                continue
            pair = pairs[name]
            ratio = (pair.alpha / pair.rank) / (_alpha(layer, adapter) / down.shape[0])
            down[: pair.rank].copy_(pair.down)
            up[:, pair.rank :].zero_()
            up[:, : pair.rank].copy_(pair.up if ratio == 1 else pair.up.double() * ratio)
    return matched, unmatched


def _layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, Any]]:
    found = False
    for name, module in model.named_modules():
        if adapter in getattr(module, "lora_A", {}):
            found = True
            yield name.removeprefix("base_model.model."), module
    if not found:
        raise UserError(f"the model has no adapter named {adapter}")


def _alpha(layer: Any, adapter: str) -> float:
    alpha, rank = float(layer.lora_alpha[adapter]), int(layer.r[adapter])
    return alpha * math.sqrt(rank) if layer.use_rslora.get(adapter, False) else alpha


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().cpu().clone().contiguous()
