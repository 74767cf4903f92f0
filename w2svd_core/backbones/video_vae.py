"""A causal video VAE of diffusers as a codec."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..geometry import LatentGeometry
from .weights import frozen, sampled_hash


class VideoVae:
    """Latents are the mode of the posterior, scaled to about unit variance, as diffusers' pipelines have them.

    Args:
        vae: a VAE of diffusers that can slice and tile; it is frozen here.
        geometry: of its latents.
        mean, deviation: of its raw latents, for each channel or for all of them.
        tile_above: pixels of a frame above which it works in tiles.
    """

    def __init__(
        self,
        vae: Any,
        geometry: LatentGeometry,
        mean: Sequence[float],
        deviation: Sequence[float],
        device: torch.device | None,
        tile_above: int,
    ) -> None:
        self.geometry = geometry
        self.vae: Any = frozen(vae, device or torch.device("cpu"))
        self.vae.enable_slicing()  # clip by clip: memory does not grow with the batch
        self._tile_above = tile_above
        self._mean = torch.tensor(mean).view(1, -1, 1, 1, 1)
        self._deviation = torch.tensor(deviation).view(1, -1, 1, 1, 1)

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


class ScaledVae(VideoVae):
    """One whose config holds a single number for the scale of its latents.

    Args:
        vae: as of `VideoVae`.
        tile_above: pixels of a frame above which it works in tiles; None = the family's usual ones.

    Attributes:
        patch: latent cells per token of the transformers that it belongs to.
        tiles_from: the family's usual `tile_above`.
    """

    patch: int
    tiles_from: int

    def __init__(self, vae: Any, device: torch.device | None = None, tile_above: int | None = None) -> None:
        config = vae.config
        space, time = config.spatial_compression_ratio, config.temporal_compression_ratio
        geometry = LatentGeometry(config.latent_channels, space, time, self.patch)
        tiles = self.tiles_from if tile_above is None else tile_above
        super().__init__(vae, geometry, [0.0], [1 / config.scaling_factor], device, tiles)
