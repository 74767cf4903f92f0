"""What the tests of the export door share: LoRA files of tiny models, and what the door says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from kind import Kind, with_roles
from tiny_wan import tiny_wan
from torch import Tensor, nn

from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Backbone
from w2svd_core.lora_files import LoraMetadata, Schedule, base_hash, pairs_from_peft, write_lora

WAN = backbone("wan")
MEASURED = re.compile(r"largest difference of the model's output: (\S+) \(of (\S+), (\S+) of it\)")


def model_of(kind: Kind, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The tiny model of a kind."""
    assert kind.tiny is not None
    return kind.backbone.load(kind.tiny().folder, dtype).eval()


def base_of(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The tiny model of a kind of Wan."""
    return WAN.load(tiny_wan(kind).folder, dtype).eval()


def about(model: nn.Module, precision: str = "fp32", **changes: Any) -> LoraMetadata:
    values: dict[str, Any] = {
        "method": "w2s",
        "schedules": (Schedule((1.0, 0.9, 0.0)),),
        "base_class": type(model).__name__,
        "base_hash": base_hash(model),
        "base_precision": precision,
    }
    return LoraMetadata(**values | changes)


def new_lora(
    path: Path, model: nn.Module, format: str = "native", known: bool = True, family: Backbone = WAN, **settings: Any
) -> Path:
    """The adapter of a student that does something, as a file; without metadata unless `known`."""
    shared = with_roles(model, family=family.name, critic_rank=0, **settings)
    for name, parameter in shared.base.named_parameters():
        if ".lora_" in name:
            parameter.data *= 0.3
    pairs = pairs_from_peft(shared.base, "generator")
    metadata = about(model) if known else None
    write_lora(path, pairs, metadata, format=format, key_map=family.keys)  # type: ignore[arg-type]
    return path


def output(model: nn.Module, family: Backbone = WAN) -> Tensor:
    with torch.no_grad():
        return family.predict(model, *family.probe(model)).float()


def measured(shown: str) -> tuple[float, float]:
    """The largest difference, and the largest output."""
    found = MEASURED.search(shown)
    assert found, shown
    return float(found[1]), float(found[2])


def done(result: tuple[int, str, str], noted: bool = False) -> str:
    """What a door said that did its work; with `noted`, it may have had something to note."""
    code, shown, err = result
    assert code == 0 and (err == "" or (noted and err.startswith("note: "))), err
    return shown
