"""A native MODEL as a `Backbone`: ComfyUI's conventions, and its conditions as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor, nn

from ..condition import GUIDANCE, Condition
from ..errors import UserError
from ..flow import Process, RectifiedFlow
from ..geometry import LatentGeometry
from ..settings import Model
from .base import Architecture, Facts, KeyMap
from .comfy_model import NativeModel, repeated_blocks
from .comfy_names import in_diffusers

if TYPE_CHECKING:
    from ..data.codec import Codec
    from ..data.encoder_source import EncoderSource, StartEncoder
    from ..lora_pairs import LoraPair

TEXT = "c_crossattn"  # ComfyUI's name of what the prompt becomes


class NativeBackbone:
    """Any flow-matching model that ComfyUI has loaded.

    Args:
        base: the model.
        constants: what a call takes beside the fields of a condition, the same for all rows.
    """

    name = "comfyui"
    frame_by_frame = False
    not_in_comfyui = ""
    process: Process = RectifiedFlow()

    def __init__(self, base: NativeModel, constants: Mapping[str, Any] | None = None) -> None:
        refuse_other_processes(base.patcher)
        self.keys: KeyMap = base.keys
        self.lora_targets = tuple(base.layers)
        self.constants = dict(constants or {})

    def latents(self, model: nn.Module) -> LatentGeometry:
        return geometry_of(_native(model).patcher)

    def facts(self, model: nn.Module) -> Facts:
        base = _native(model)
        count = sum(p.numel() for p in base.native.parameters())
        told = takes_guidance(base.patcher)
        return Facts(
            name=f"ComfyUI's {type(base.model).__name__} ({count / 1e9:.1f} billion parameters)",
            fps=16, frames=81, negative_prompt="", guidance_scale=1.0 if told else 5.0, shift=5.0, needs=(TEXT,),
            takes=(GUIDANCE,) if told else (), repository="", gigabytes=2e-9 * count,
        )  # fmt: skip

    def doubts(self, place: str) -> Sequence[str]:
        from . import family_of_keys

        known = family_of_keys(self.keys)
        return known.doubts(place) if known else ()

    def check_fit(self, model: nn.Module, latents: LatentGeometry, width: int) -> None:
        wanted = self.latents(model)
        if latents.channels != wanted.channels:
            raise UserError(
                f"the MODEL takes latents of {wanted.channels} channels, the clips have {latents.channels}; "
                "encode them by the VAE that belongs to the MODEL"
            )

    def check_condition(self, model: nn.Module, condition: Condition) -> None:
        if TEXT not in condition.fields:
            raise UserError("the CONDITIONING holds no prompt; connect the output of a text encoder")

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        return repeated_blocks(_native(model).native)

    def predict(self, model: nn.Module, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        levels = sigma.to(x_t.device, torch.float32).expand(len(x_t))
        output: Tensor = model(x_t, levels, {**self.constants, **condition.fields})
        return output

    def hold(self, x0: Tensor, condition: Condition) -> Tensor:
        return x0

    def free(self, condition: Condition, like: Tensor) -> Tensor | None:
        return None

    def build(self, architecture: Architecture) -> nn.Module:
        _elsewhere("built")

    def load(self, path: Path, dtype: torch.dtype) -> nn.Module:
        _elsewhere("loaded")

    def with_first_frame(self, model: nn.Module) -> nn.Module:
        _elsewhere("widened")

    def encoder_source(self, settings: Model, device: torch.device) -> EncoderSource:
        _elsewhere("given encoders")

    def start_encoder(self, settings: Model, codec: Codec) -> StartEncoder | None:
        _elsewhere("given encoders")

    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor, Condition]:
        _elsewhere("probed")

    def save_folder(self, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
        _elsewhere("saved as a folder")

    def native_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        return dict(_native(model).native.state_dict())

    def in_diffusers(self, pairs: Mapping[str, LoraPair]) -> Mapping[str, LoraPair]:
        return in_diffusers(self.keys, pairs)

    def native_metadata(self, model: nn.Module) -> Mapping[str, str]:
        return {}


def refuse_other_processes(patcher: Any) -> None:
    """Stop at a model that does not predict noise - data.

    Raises:
        UserError: it is of another kind.
    """
    import comfy.model_sampling

    convention = patcher.get_model_object("model_sampling")
    if not isinstance(convention, comfy.model_sampling.CONST):
        raise UserError(
            f"the MODEL is a {type(patcher.model).__name__}, which is no flow-matching model; load one (Wan, "
            "HunyuanVideo, LTX-Video) to distil it"
        )
    if _has(patcher, "time_r_in."):
        raise UserError(
            "the MODEL is step-distilled already (MeanFlow) and is no teacher; load the one that it was distilled from"
        )


def takes_guidance(patcher: Any) -> bool:
    """Whether a model is told its guidance as an input: it has layers that read one."""
    return _has(patcher, "guidance_in.")


def geometry_of(patcher: Any) -> LatentGeometry:
    """The latents of a native model, as far as ComfyUI tells."""
    latent = patcher.model.latent_format
    video = getattr(latent, "latent_dimensions", 2) == 3
    space = getattr(latent, "spacial_downscale_ratio", 8)
    time = getattr(latent, "temporal_downscale_ratio", 4 if video else 1)
    return LatentGeometry(int(latent.latent_channels), int(space), int(time), patch=2)


def _has(patcher: Any, prefix: str) -> bool:
    return any(name.startswith(prefix) for name, _ in patcher.model.diffusion_model.named_parameters())


def _native(model: nn.Module) -> NativeModel:
    return cast(NativeModel, model)


def _elsewhere(what: str) -> NoReturn:
    raise UserError(f"a native MODEL can't be {what} here; that is done by ComfyUI's own nodes")
