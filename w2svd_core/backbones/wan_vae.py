"""Wan's video VAEs as codecs: 2.1 (16 channels, 8 pixels to a cell) and 2.2 (48 channels, 16 pixels to a cell)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..geometry import LatentGeometry
from .class_config import bundled_config
from .video_vae import VideoVae
from .wan_vae_keys import diffusers_names, shape_names
from .weights import Header, Plan, Shapes, class_in, from_file, from_folder, hollow

CLASS = "AutoencoderKLWan"
PATCH = 2  # of every Wan transformer
TILE_ABOVE = 480 * 832  # pixels of a frame; larger ones are encoded and decoded in overlapping tiles
PUBLISHED = {16: "wan2.1-vae", 48: "wan2.2-vae"}  # by the channels of its latents


class WanVae(VideoVae):
    """A codec of diffusers' `AutoencoderKLWan`; its config holds mean and deviation of its latents.

    Args:
        vae: an `AutoencoderKLWan`; it is frozen here.
        tile_above: pixels of a frame above which it works in tiles.
    """

    def __init__(self, vae: Any, device: torch.device | None = None, tile_above: int = TILE_ABOVE) -> None:
        config = vae.config
        space, time = config.scale_factor_spatial, config.scale_factor_temporal
        geometry = LatentGeometry(config.z_dim, space, time, patch=PATCH)
        super().__init__(vae, geometry, config.latents_mean, config.latents_std, device, tile_above)


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
