"""From a folder of clips to latents and conditions, through a cache that knows what it was made of."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..condition import Condition
from ..files import read_safetensors, write_safetensors
from ..hashing import tensors_hash, value_hash
from ..randomness import shuffled_rows
from ..settings import Data
from .clips import Clip, list_clips
from .codec import to_signed
from .encoder_source import LoadedEncoders, empty_condition, null_condition
from .shards import clip_key

LAYOUT = 3  # of the cache's files; another number makes them anew
CONDITION = "condition/"  # before the names of a condition's fields in the cache
Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


@dataclass(frozen=True)
class LatentSet:
    """Clips as a model takes them.

    Attributes:
        latents: `n c f h w`, unit scale.
        condition: n rows.
        null: one row, what guidance leads away from.
        captions: n texts.
        unnamed: one row, where the empty prompt is another one.
    """

    latents: Tensor
    condition: Condition
    null: Condition
    captions: tuple[str, ...]
    unnamed: Condition | None = None

    @property
    def empty(self) -> Condition:
        """The empty prompt, one row."""
        return self.null if self.unnamed is None else self.unnamed

    def __len__(self) -> int:
        return len(self.latents)

    def fingerprint(self) -> str:
        """Changes with anything that a training would see: latents, conditions, their order, the empty prompt."""
        null = {f"null/{name}": value for name, value in self.null.fields.items()}
        return tensors_hash({"latents": self.latents, **self.condition.fields, **null})

    def rows(self, place: int, count: int, seed: int) -> list[int]:
        """`count` rows at a place of an endless stream that goes through all clips, reshuffled each time."""
        return shuffled_rows(len(self), place, count, seed)

    def shape(self, rows: Sequence[int]) -> tuple[int, int, int, int]:
        """(c, f, h, w) of some rows; all are alike."""
        c, f, h, w = self.latents.shape[1:]
        return c, f, h, w

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


def load_latents(settings: Data, encoders: LoadedEncoders, progress: Progress) -> LatentSet:
    """Encode every clip of the recipe's folder, or read the cache that an earlier run made of the same clips.

    For encoders that are there already and clips of one shape that fit into memory; everything else is prepared.

    Raises:
        UserError: the folder, a clip, a caption or the size does not serve; the sentence names it.
    """
    encoders.geometry.latent_shape(settings.frames, settings.height, settings.width)
    clips = list_clips(clip_folder(settings, progress))
    print_of_all = _fingerprint(clips, settings, encoders)
    path = cache_folder(settings) / f"latents-{print_of_all}.safetensors"
    if path.is_file():
        tensors, _ = read_safetensors(path)
    else:
        condition = encoders.prompts.encode([clip.caption for clip in clips])
        tensors = {f"{CONDITION}{name}": value for name, value in condition.fields.items()}
        tensors |= _encode_clips(clips, settings, encoders, progress)
        write_safetensors(path, tensors, {"clips": json.dumps([clip.name for clip in clips])})
    return LatentSet(
        tensors["latents"],
        Condition({name.removeprefix(CONDITION): t for name, t in tensors.items() if name.startswith(CONDITION)}),
        null_condition(encoders.prompts),
        tuple(clip.caption for clip in clips),
        empty_condition(encoders.prompts),
    )


@torch.no_grad()
def _encode_clips(
    clips: Sequence[Clip], settings: Data, encoders: LoadedEncoders, progress: Progress, batch: int = 16
) -> dict[str, Tensor]:
    """Latents, and what an image-to-video model is shown of each clip's first frame."""
    from .video import read_video

    parts: dict[str, list[Tensor]] = defaultdict(list)
    for start in range(0, len(clips), batch):
        videos = [
            read_video(clip.path, settings.frames, settings.height, settings.width, settings.fps)
            for clip in clips[start : start + batch]
        ]
        for number, video in enumerate(map(to_signed, (video[None] for video in videos)), start):
            parts["latents"].append(encoders.codec.encode(video))
            for name, value in _start_fields(encoders, video, clips[number].caption).items():
                parts[f"{CONDITION}{name}"].append(value)
        progress("encoding clips", min(start + batch, len(clips)), len(clips))
    return {name: torch.cat(values) for name, values in parts.items()}


def _start_fields(encoders: LoadedEncoders, video: Tensor, caption: str) -> Mapping[str, Tensor]:
    return encoders.start.encode(video[:, :, :1], video.shape[2], [caption]) if encoders.start else {}


def _fingerprint(clips: Sequence[Clip], settings: Data, encoders: LoadedEncoders) -> str:
    """Of everything that the cached tensors depend on: files, captions, size, rate, codec and text encoder."""
    files = [(clip_key(clip), clip.caption) for clip in clips]
    size = (LAYOUT, settings.frames, settings.height, settings.width, settings.fps)
    own = encoders.fingerprints()
    return value_hash([files, size, own["codec"], own["text"], *([own["start"]] if own["start"] else [])])
