"""Between pixels and latents: the interface of a video VAE, and the small codec that stands in for one.

The portrait codec is an honest stand-in. It shares with Wan's VAE the 16 channels, four frames to a latent frame,
and causality (the first frame alone, then groups of four). It differs in everything else: 4x in space instead of 8x,
a linear encoder, 0.5 million weights, fitted to the rendered portraits of this project and to nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..files import read_safetensors
from ..geometry import LatentGeometry

Video = NDArray[np.uint8]  # f h w 3, or n f h w 3; RGB
AT_ONCE = 2**18  # numbers of latents that are decoded together: 51 portraits, or one clip of a real model


class Codec(Protocol):
    """What training and sampling need of a video VAE. Videos are `b 3 f h w` in [-1, 1]; latents have unit scale."""

    geometry: LatentGeometry

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents `b c f h w`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """A video in [-1, 1]."""
        ...

    def fingerprint(self) -> str:
        """Changes when the latents of the same clip would."""
        ...


class PortraitCodec(nn.Module):
    """The bundled codec. Linear in, so that latents stay simple; linear and then two small networks out.

    A block of 4 frames x 4 x 4 pixels becomes the 16 strongest of its principal components. The first frame of a clip
    is a group of its own, repeated four times. The decoder sees a block's neighbours and the latent frame before:
    `deep` adds to the linear blocks what a face must look like, `refine` smooths their seams at full size.
    """

    geometry = LatentGeometry(channels=16, space=4, time=4, patch=2)

    def __init__(self, width: int = 48, deep_width: int = 96) -> None:
        super().__init__()
        g = self.geometry
        block = 3 * g.time * g.space**2
        self.mean: Tensor
        self.basis: Tensor  # its columns: principal components over their scale
        self.register_buffer("mean", torch.zeros(block))
        self.register_buffer("basis", torch.zeros(block, g.channels))
        self.linear = nn.Conv2d(2 * g.channels, block, 3, padding=1, padding_mode="replicate")
        blocks = nn.Conv2d(deep_width, block, 3, padding=1)
        nn.init.zeros_(blocks.weight)
        self.deep = nn.Sequential(
            nn.Conv2d(2 * g.channels, deep_width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(deep_width, deep_width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(deep_width, deep_width, 3, padding=1), nn.SiLU(),
            blocks,
        )  # fmt: skip
        last = nn.Conv2d(width, 3 * g.time, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.refine = nn.Sequential(
            nn.Conv2d(3 * g.time + 2 * g.channels, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            last,
        )  # fmt: skip

    def blocks(self, video: Tensor) -> Tensor:
        """A video `b 3 f h w` as blocks `b k h/4 w/4 192`, the first frame repeated to a group of four."""
        g = self.geometry
        video = torch.cat([video[:, :, :1].expand(-1, -1, g.time - 1, -1, -1), video], dim=2)
        b, c, f, h, w = video.shape
        cut = video.reshape(b, c, f // g.time, g.time, h // g.space, g.space, w // g.space, g.space)
        return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    def encode(self, video: Tensor) -> Tensor:
        """Latents `b 16 1+(f-1)/4 h/4 w/4` of a video `b 3 f h w` in [-1, 1]; unit variance over the portraits."""
        self.geometry.latent_shape(*video.shape[2:])
        return ((self.blocks(video) - self.mean) @ self.basis).permute(0, 4, 1, 2, 3)

    def decode(self, latents: Tensor) -> Tensor:
        """A video `b 3 1+4(k-1) 4h 4w` in [-1, 1] from latents `b 16 k h w`."""
        frames = self.decode_groups(latents)
        return frames[:, :, self.geometry.time - 1 :].clamp(-1, 1)

    def context(self, latents: Tensor) -> Tensor:
        """Each latent frame beside the one before it (itself, for the first): `b*k 32 h w`."""
        before = torch.cat([latents[:, :, :1], latents[:, :, :-1]], dim=2)
        return torch.cat([latents, before], dim=1).transpose(1, 2).flatten(0, 1)

    def decode_groups(self, latents: Tensor) -> Tensor:
        """All `4 k` frames, unclamped."""
        b, _, k, _, _ = latents.shape
        groups = self.decode_context(self.context(latents))
        return groups.reshape(b, k, *groups.shape[1:]).permute(0, 2, 1, 3, 4, 5).flatten(2, 3)

    def decode_context(self, context: Tensor) -> Tensor:
        """Groups of frames `n 3 4 4h 4w`, unclamped, from latent frames beside those before them, `n 32 h w`."""
        g = self.geometry
        # the channels of a block run as (rgb, frame, y, x), which is how pixel_shuffle reads them
        rough = F.pixel_shuffle(self.linear(context) + self.deep(context), g.space)  # n 3*4 4h 4w
        near = F.interpolate(context, scale_factor=g.space, mode="bilinear", align_corners=False)
        fine: Tensor = rough + self.refine(torch.cat([rough, near], dim=1))
        return fine.reshape(len(fine), 3, g.time, *fine.shape[2:])

    def fingerprint(self) -> str:
        from ..hashing import tensors_hash

        return tensors_hash({"mean": self.mean, "basis": self.basis})  # latents do not depend on the decoder


class FrameByFrame(nn.Module):
    """A codec that makes each frame a clip of its own, so that its latents are an image model's.

    Args:
        codec: of frames; it may pack several of a longer clip together.
    """

    def __init__(self, codec: PortraitCodec) -> None:
        super().__init__()
        self.codec = codec
        self.geometry = replace(codec.geometry, time=1)

    def encode(self, video: Tensor) -> Tensor:
        self.geometry.latent_shape(*video.shape[2:])
        return by_frame(self.codec.encode, video)

    def decode(self, latents: Tensor) -> Tensor:
        return by_frame(self.codec.decode, latents)

    def fingerprint(self) -> str:
        from ..hashing import value_hash

        return value_hash(["frame by frame", self.codec.fingerprint()])


def by_frame(change: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
    """What becomes of the frames of `b c f h w`, each as a clip."""
    found = change(clips.transpose(1, 2).flatten(0, 1).unsqueeze(2))
    frames: Tensor = found.squeeze(2).unflatten(0, (len(clips), -1))
    return frames.transpose(1, 2)


def load_portrait_codec(path: Path) -> PortraitCodec:
    """The bundled codec in evaluation mode, its weights frozen."""
    tensors, _ = read_safetensors(path)
    codec = PortraitCodec()
    codec.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return codec.eval().requires_grad_(False)


def to_signed(video: Video) -> Tensor:
    """uint8 `n f h w 3` to float `n 3 f h w` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(video)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_pixels(video: Tensor) -> Video:
    """float `n 3 f h w` in [-1, 1] to uint8 `n f h w 3`."""
    pixels: Video = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()
    return pixels


@torch.no_grad()
def decode_pixels(codec: Codec, latents: Tensor) -> Video:
    """Decode latents in slices, so that neither many clips nor large ones need a large memory."""
    batch = max(1, AT_ONCE // latents[:1].numel())
    parts = [to_pixels(codec.decode(latents[i : i + batch].float())) for i in range(0, len(latents), batch)]
    return np.concatenate(parts)


def reconstruction_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """L1 of the pixels `b 3 f h w` and of their differences: in space, which keeps eyes sharp, and in time (motion)."""
    parts = [F.l1_loss(found, wanted)]
    parts += [F.l1_loss(found.diff(dim=dim), wanted.diff(dim=dim)) for dim in (-1, -2, -3)]
    return torch.stack(parts).sum()
