"""From a folder of clips to latents and conditions, through a cache that knows what it was made of."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..condition import Condition
from ..files import read_safetensors, write_safetensors
from ..hashing import tensors_hash, value_hash
from ..settings import Data
from .clips import Clip, list_clips
from .codec import Codec, to_unit
from .prompts import PromptEncoder

LAYOUT = 2  # of the cache's files; another number makes them anew
CONDITION = "condition/"  # before the names of a condition's fields in the cache
Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


@dataclass(frozen=True)
class LatentSet:
    """Clips as a model takes them.

    Attributes:
        latents: `n c f h w`, unit scale.
        condition: n rows.
        null: one row, the condition of the empty prompt.
        captions: n texts.
    """

    latents: Tensor
    condition: Condition
    null: Condition
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.latents)

    def fingerprint(self) -> str:
        """Changes with anything that a training would see: latents, conditions, their order."""
        return tensors_hash({"latents": self.latents, **self.condition.fields})

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Condition]:
        """Latents and conditions of some rows, on a device."""
        index = torch.as_tensor(rows)
        return self.latents[index].to(device), self.condition[index].to(device)


def cache_folder(settings: Data) -> Path:
    """Where drawn clips and latents are kept: `data.cache`, else the user's cache folder."""
    if settings.cache:
        return Path(settings.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w2svd"


def clip_folder(settings: Data, progress: Progress) -> Path:
    """The folder of clips that the recipe means; the portraits are drawn into the cache on first use."""
    if settings.folder != "portraits":
        return Path(settings.folder)
    from .portraits import DRAWING, render_folder

    size = f"{settings.clips}x{settings.frames}x{settings.height}x{settings.width}-{settings.fps:g}fps"
    folder = cache_folder(settings) / f"portraits-{DRAWING}-{size}"
    render_folder(
        folder, settings.clips, 0, settings.frames, settings.height, settings.width, settings.fps,
        lambda done, count: progress("drawing portraits", done, count),
    )  # fmt: skip
    return folder


def load_latents(settings: Data, codec: Codec, encoder: PromptEncoder, progress: Progress) -> LatentSet:
    """Encode every clip of the recipe's folder, or read the cache that an earlier run made of the same clips.

    Raises:
        UserError: the folder, a clip, a caption or the size does not serve; the sentence names it.
    """
    codec.geometry.latent_shape(settings.frames, settings.height, settings.width)
    clips = list_clips(clip_folder(settings, progress))
    print_of_all = _fingerprint(clips, settings, codec, encoder)
    path = cache_folder(settings) / f"latents-{print_of_all}.safetensors"
    if path.is_file():
        tensors, _ = read_safetensors(path)
    else:
        condition = encoder.encode([clip.caption for clip in clips])
        tensors = {f"{CONDITION}{name}": value for name, value in condition.fields.items()}
        tensors["latents"] = _encode_clips(clips, settings, codec, progress)
        write_safetensors(path, tensors, {"clips": json.dumps([clip.name for clip in clips])})
    return LatentSet(
        tensors["latents"],
        Condition({name.removeprefix(CONDITION): t for name, t in tensors.items() if name.startswith(CONDITION)}),
        encoder.encode([""]),
        tuple(clip.caption for clip in clips),
    )


@torch.no_grad()
def _encode_clips(clips: Sequence[Clip], settings: Data, codec: Codec, progress: Progress, batch: int = 16) -> Tensor:
    from .video import read_video

    parts = []
    for start in range(0, len(clips), batch):
        videos = [
            read_video(clip.path, settings.frames, settings.height, settings.width, settings.fps)
            for clip in clips[start : start + batch]
        ]
        parts.append(torch.cat([codec.encode(to_unit(video[None])) for video in videos]))
        progress("encoding clips", min(start + batch, len(clips)), len(clips))
    return torch.cat(parts)


def _fingerprint(clips: Sequence[Clip], settings: Data, codec: Codec, encoder: PromptEncoder) -> str:
    """Of everything that the cached tensors depend on: files, captions, size, rate, codec and text encoder."""
    files = [(c.name, c.path.stat().st_size, c.path.stat().st_mtime_ns, c.caption) for c in clips]
    size = (LAYOUT, settings.frames, settings.height, settings.width, settings.fps)
    return value_hash([files, size, codec.fingerprint(), encoder.fingerprint()])
