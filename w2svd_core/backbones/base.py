"""What the rest of the house may know of a model family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..flow import Process
from ..geometry import LatentGeometry
from ..settings import Model
from .key_parts import Parts

if TYPE_CHECKING:
    from ..data.codec import Codec
    from ..data.encoder_source import EncoderSource, StartEncoder
    from ..lora_pairs import LoraPair


@dataclass(frozen=True)
class Architecture:
    """The size of a model that is trained from scratch.

    Attributes:
        first_frame: it makes a clip from its first frame (the condition's field `start`) and text.
    """

    heads: int
    head_dim: int
    ffn_dim: int
    layers: int
    text_dim: int
    first_frame: bool = False


@dataclass(frozen=True)
class Facts:
    """What a family knows of one of its models.

    Attributes:
        name: of the variant, as people call it.
        fps, frames: of the clips that it is made for.
        negative_prompt: whose embedding is the null condition of guidance.
        guidance_scale, shift: that its makers sample with.
        needs: the condition's fields without which it can't be called.
        takes: all fields that it understands.
        repository: where its weights are published; "" for a model of another size.
        gigabytes: of its weights in 16 bits.
    """

    name: str
    fps: float
    frames: int
    negative_prompt: str
    guidance_scale: float
    shift: float
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    repository: str
    gigabytes: float


class KeyMap(Protocol):
    """Names of one model family's modules; an unknown name raises `UserError`.

    Attributes:
        component: the part of diffusers' pipelines that the model is, which begins its keys in their LoRA files.
    """

    @property
    def component(self) -> str: ...

    def native_module(self, name: str, /) -> str:
        """The layer of native files that a diffusers module is, or is a part of."""
        ...

    def parts(self, name: str, /) -> Parts:
        """The diffusers modules that a native layer (its name without prefix) is."""
        ...

    def native_alpha(self, name: str, /) -> bool:
        """Whether readers of native files honour `.alpha` beside this diffusers module."""
        ...


class Backbone(Protocol):
    """A model family: its signature, time convention, prediction type, latents and names.

    Attributes:
        process: what the model's output means.
        lora_targets: module names (endings) that take an adapter; `*` stands for one part of a name.
        keys: module names in native files.
        not_in_comfyui: why ComfyUI's core can't sample what it learned; "" where it can.
        frame_by_frame: its latents are of single frames, as an image model's; no causal VAE packs them together.
    """

    name: str
    not_in_comfyui: str
    frame_by_frame: bool
    process: Process
    lora_targets: tuple[str, ...]
    keys: KeyMap

    def build(self, architecture: Architecture) -> nn.Module:
        """A new model with random weights."""
        ...

    def load(self, path: Path, dtype: torch.dtype) -> nn.Module:
        """A model from a folder or a native file.

        Raises:
            UserError: it is not there, broken, or of another family.
        """
        ...

    def with_first_frame(self, model: nn.Module) -> nn.Module:
        """A text-to-video model as one that starts from a first frame, which it does not look at yet.

        Raises:
            UserError: it is of another kind.
        """
        ...

    def latents(self, model: nn.Module) -> LatentGeometry:
        """The latents that a model makes."""
        ...

    def facts(self, model: nn.Module) -> Facts:
        """What is known of a model."""
        ...

    def encoder_source(self, settings: Model, device: torch.device) -> EncoderSource:
        """The encoders that belong to the model in `settings.path`, not loaded yet.

        Raises:
            UserError: the model is not there, or of a kind that is not supported.
        """
        ...

    def start_encoder(self, settings: Model, codec: Codec) -> StartEncoder | None:
        """What shows a first frame to the model that `settings` name, with another codec than its own.

        None for a model that makes a clip from text alone.

        Raises:
            UserError: as `encoder_source`.
        """
        ...

    def doubts(self, place: str) -> Sequence[str]:
        """What the name of a model's folder or file says against training it, a sentence each."""
        ...

    def check_fit(self, model: nn.Module, latents: LatentGeometry, width: int) -> None:
        """Whether the model takes these latents, and prompts whose tokens are so wide.

        Raises:
            UserError: it does not; the sentence names both sides.
        """
        ...

    def check_condition(self, model: nn.Module, condition: Condition) -> None:
        """Whether a condition has all fields that the model needs, of its sizes, and none that it does not know.

        Raises:
            UserError: it has not; the sentence names both sides.
        """
        ...

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """The repeated blocks, which make nearly all of the work, in the order in which they run."""
        ...

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The model's raw output, in the process's convention. x_t `b c f h w`; sigma (b,) in [0, 1].

        What the condition gives of the clip itself (see `hold`) is read from it, whatever x_t holds there; the output
        means nothing there.

        Raises:
            UserError: as `check_condition`.
        """
        ...

    def hold(self, x0: Tensor, condition: Condition) -> Tensor:
        """x0 `b c f h w` with the frames that the condition gives put in, as constants; x0 itself if it gives none."""
        ...

    def free(self, condition: Condition, like: Tensor) -> Tensor | None:
        """What there is to predict: `b 1 f 1 1`, 1 for free frames, 0 for held ones; None where all are free.

        Raises:
            UserError: nothing is free.
        """
        ...

    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor, Condition]:
        """Something small to ask a model, always the same: random x_t `b c f h w`, sigma (b,), a condition with all
        that the model takes.
        """
        ...

    def save_folder(self, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
        """Write the model as a diffusers folder, in `dtype` but for what diffusers itself keeps in float32."""
        ...

    def native_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The model's weights under native names."""
        ...

    def in_diffusers(self, pairs: Mapping[str, LoraPair]) -> Mapping[str, LoraPair]:
        """An adapter by the layers of diffusers' model of the family; {} where diffusers has none."""
        ...

    def native_metadata(self, model: nn.Module) -> Mapping[str, str]:
        """What the header of a native file must say so that `load` can read it back."""
        ...
