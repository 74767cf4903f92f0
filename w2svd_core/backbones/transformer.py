"""What the families of diffusers' video transformers have in common: flow matching, folders and files, a held frame."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..files import dtype_named
from ..flow import Process, RectifiedFlow
from ..geometry import LatentGeometry
from ..settings import Model
from .base import Facts, KeyMap
from .class_config import config_of
from .held_frame import free_after_first, with_first
from .weights import save_folder

if TYPE_CHECKING:
    from ..data.encoder_source import EncoderSource
    from ..lora_pairs import LoraPair

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Words:
    """What a family calls its own; all of a config (the class's arguments) or of a place on disk.

    Attributes:
        new_model: one with random weights.
        load_model: one from a folder or file, in a dtype.
        config_at: the config of one on disk.
        geometry_of, facts_of, probe_of: as the methods of `Backbone`; facts take the number of parameters, too.
        to_native: a whole model's weights under native names.
        stays_wide: whether diffusers keeps a parameter in float32.
    """

    new_model: Callable[[Config], nn.Module]
    load_model: Callable[[Path, torch.dtype], nn.Module]
    config_at: Callable[[Path], Config]
    geometry_of: Callable[[Config], LatentGeometry]
    facts_of: Callable[[Config, int], Facts]
    probe_of: Callable[[Config], tuple[Tensor, Tensor, Condition]]
    to_native: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    stays_wide: Callable[[str], bool] = lambda name: False


class Transformer(ABC):
    """A `Backbone` but for what is each family's own: what it takes, how it is called, and its encoders.

    Attributes:
        words: of the family.
        block_lists: the model's lists of repeated blocks.
        held: the condition's field of a first latent frame that x0 itself holds; "" = there is none.
    """

    name: str
    frame_by_frame = False
    not_in_comfyui = ""
    process: Process = RectifiedFlow()
    lora_targets: tuple[str, ...]
    keys: KeyMap
    words: Words
    block_lists: tuple[str, ...] = ("transformer_blocks",)
    held = ""

    def load(self, path: Path, dtype: torch.dtype) -> nn.Module:
        return self.words.load_model(path, dtype)

    def latents(self, model: nn.Module) -> LatentGeometry:
        return self.words.geometry_of(seen(model))

    def facts(self, model: nn.Module) -> Facts:
        parameters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" not in name)
        return self.words.facts_of(seen(model), parameters)

    def encoder_source(self, settings: Model, device: torch.device) -> EncoderSource:
        config = self.words.config_at(Path(settings.path))
        return self.source(settings, config, dtype_named(settings.text_precision), device)

    @abstractmethod
    def source(self, settings: Model, config: Config, text: torch.dtype, device: torch.device) -> EncoderSource:
        """`encoder_source` of a model of this config; `text` is the text encoders' precision."""

    def doubts(self, place: str) -> Sequence[str]:
        return ()

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return [block for name in self.block_lists for block in getattr(model, name)]

    def hold(self, x0: Tensor, condition: Condition) -> Tensor:
        first = self.held_frame(condition)
        return x0 if first is None else with_first(x0, first)

    def free(self, condition: Condition, like: Tensor) -> Tensor | None:
        return None if self.held_frame(condition) is None else free_after_first(like)

    def held_frame(self, condition: Condition) -> Tensor | None:
        """The first latent frame that x0 itself holds, `b c 1 h w`; None where there is none."""
        return condition.fields.get(self.held)

    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor, Condition]:
        return self.words.probe_of(seen(model))

    def save_folder(self, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
        wide = self.words.stays_wide
        weights = {name: w if wide(name) else w.to(dtype) for name, w in model.state_dict().items()}
        save_folder(lambda: self.words.new_model(config_of(model)), weights, folder)

    def native_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        return self.words.to_native(model.state_dict())

    def in_diffusers(self, pairs: Mapping[str, LoraPair]) -> Mapping[str, LoraPair]:
        return pairs

    def native_metadata(self, model: nn.Module) -> Mapping[str, str]:
        """What a native file's header must say so that `load` can read it back."""
        return {"config": json.dumps(config_of(model))}


def seen(model: nn.Module) -> Config:
    """The config of a model of diffusers."""
    found: Config = model.config  # type: ignore[assignment]
    return found
