"""Wan's video VAEs as codecs: 2.1 (16 channels, 8 pixels to a cell) and 2.2 (48 channels, 16 pixels to a cell)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..geometry import LatentGeometry
from .class_config import bundled_config
from .wan_vae_keys import diffusers_names, shape_names
from .weights import Header, Plan, Shapes, class_in, from_file, from_folder, frozen, hollow, sampled_hash

CLASS = "AutoencoderKLWan"
PATCH = 2  # of every Wan transformer
TILE_ABOVE = 480 * 832  # pixels of a frame; larger ones are encoded and decoded in overlapping tiles
PUBLISHED = {16: "wan2.1-vae", 48: "wan2.2-vae"}  # by the channels of its latents


class WanVae:
    """A codec of diffusers' `AutoencoderKLWan`.

    Latents are the mode of the posterior, scaled to unit variance by the mean and deviation in the VAE's config, as
    diffusers' pipelines have them.

    Args:
        vae: an `AutoencoderKLWan`; it is frozen here.
        tile_above: pixels of a frame above which it works in tiles.
    """

    def __init__(self, vae: Any, device: torch.device | None = None, tile_above: int = TILE_ABOVE) -> None:
        config = vae.config
        self.geometry = LatentGeometry(
            config.z_dim, config.scale_factor_spatial, config.scale_factor_temporal, patch=PATCH
        )
        self.vae: Any = frozen(vae, device or torch.device("cpu"))
        self.vae.enable_slicing()  # clip by clip: memory does not grow with the batch
        self._tile_above = tile_above
        self._mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        self._deviation = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised float32 latents `b c f h w` of a video `b 3 f h w` in [-1, 1], where the video is."""
        self.geometry.latent_shape(*video.shape[2:])
        self._tile(video.shape[-2] * video.shape[-1])
        z: Tensor = self.vae.encode(video.to(self.vae.device, self.vae.dtype)).latent_dist.mode().float()
        return ((z - self._mean.to(z.device)) / self._deviation.to(z.device)).to(video.device)

    def decode(self, latents: Tensor) -> Tensor:
        """A float32 video `b 3 f h w` in [-1, 1] of normalised latents, where they are."""
        self._tile(latents.shape[-2] * latents.shape[-1] * self.geometry.space**2)
        z = latents.to(self.vae.device, torch.float32)
        z = z * self._deviation.to(z.device) + self._mean.to(z.device)
        video: Tensor = self.vae.decode(z.to(self.vae.dtype)).sample.float()
        return video.to(latents.device)

    def _tile(self, pixels: int) -> None:
        self.vae.use_tiling = pixels > self._tile_above

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        seen = {n: w for n, w in self.vae.state_dict().items() if n.startswith(("encoder.", "quant_conv."))}
        scale = [self._mean.flatten().tolist(), self._deviation.flatten().tolist()]
        return sampled_hash(seen, ["vae", *scale, self._tile_above])  # latents do not depend on the decoder


def load_vae(place: Path, dtype: torch.dtype) -> nn.Module:
    """An `AutoencoderKLWan` from a diffusers folder, or from one file with Wan's own or diffusers' names.

    Raises:
        UserError: broken, scaled, or not a VAE of Wan.
    """
    from diffusers import AutoencoderKLWan

    model: nn.Module
    if place.is_dir():
        if class_in(place) != CLASS:
            raise UserError(f"{place} is not a diffusers folder of an {CLASS}; check model.vae")
        model = from_folder(AutoencoderKLWan.from_pretrained, place, "Wan VAE", torch_dtype=dtype)
    else:
        model = from_file(place, "Wan VAE", _plan(), lambda name: dtype)
    return model


def _plan() -> Plan:
    from diffusers import AutoencoderKLWan

    def plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
        config = vae_config(shapes)
        model = hollow(lambda: AutoencoderKLWan.from_config(config))
        return model, diffusers_names(list(shapes), model.state_dict(), config["is_residual"])

    return plan


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Which VAE it is, from the shapes of its tensors under Wan's own or diffusers' names.

    Raises:
        UserError: it is none of Wan's.
    """
    names = shape_names(list(shapes))
    channels, base, last = (shapes[names[name]][0] for name in names)
    if channels not in PUBLISHED:
        raise UserError(f"a VAE of {channels} latent channels is none of Wan's (16 or 48); name the model's own")
    return {**bundled_config(PUBLISHED[channels]), "base_dim": base, "decoder_base_dim": last}
