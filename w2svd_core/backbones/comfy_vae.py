"""A VAE socket as the encoders of a run, so that previews and last samples can be decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..data.codec import Codec
from ..data.encoder_source import StartEncoder
from ..data.prompts import PromptEncoder
from ..errors import UserError
from ..geometry import LatentGeometry
from .comfy_backbone import geometry_of


class NativeCodec:
    """A VAE of ComfyUI, in the normalised latents of the MODEL that it belongs to."""

    def __init__(self, patcher: Any, vae: Any) -> None:
        self._latent, self._vae = patcher.model.latent_format, vae
        self.geometry = geometry_of(patcher)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents `b c f h w` of `b 3 f h w` in [-1, 1], clip by clip."""
        with torch.no_grad():  # not inference mode: it may have to make room and move the MODEL
            frames = (video.movedim(1, -1) + 1) / 2  # b f h w 3
            parts = [self._latent.process_in(self._vae.encode(clip).float()) for clip in frames]
        return torch.cat([part.cpu().clone() for part in parts])

    def decode(self, latents: Tensor) -> Tensor:
        """A video `b 3 f h w` in [-1, 1], clip by clip."""
        with torch.no_grad():
            parts = [self._vae.decode(self._latent.process_out(one[None].clone())) for one in latents.detach()]
        return torch.cat([_whole_clip(part).float().cpu().clone() for part in parts]).movedim(-1, 1) * 2 - 1

    def fingerprint(self) -> str:
        return type(self._vae).__name__


class NativeSource:
    """`EncoderSource` of a run in ComfyUI, whose clips and prompts are encoded already.

    Args:
        patcher: the MODEL.
        vae: the VAE that belongs to it.
    """

    width = 0
    starts = False
    captioned = False

    def __init__(self, patcher: Any, vae: Any) -> None:
        self._patcher, self._vae = patcher, vae

    @property
    def geometry(self) -> LatentGeometry:
        return geometry_of(self._patcher)

    def fingerprints(self) -> Mapping[str, str]:
        return {"codec": "", "text": "", "start": ""}

    def load_codec(self) -> Codec:
        return NativeCodec(self._patcher, self._vae)

    def load_prompts(self) -> PromptEncoder:
        _elsewhere()

    def load_start(self, codec: Codec) -> StartEncoder | None:
        return None


def _whole_clip(pixels: Tensor) -> Tensor:
    """`1 f h w 3`, whether the VAE gives its frames as a batch or as a video."""
    return pixels if pixels.ndim == 5 else pixels[None]


def _elsewhere() -> NoReturn:
    raise UserError("prompts are encoded by ComfyUI's own nodes; connect their CONDITIONING")
