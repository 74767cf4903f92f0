"""All numbers for a set of clips in one call.

    reference = Reference.of(data_clips)
    numbers = measure(videos, captions, reference, group_size=4)

512 clips of 17 x 64 x 64 take some seconds on one core; beyond the clips themselves memory holds one batch at
a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError
from ..files import read_safetensors, write_safetensors
from .adherence import adherence
from .appearance import flicker, saturation, sharpness
from .diversity import diversity
from .frechet import FeatureStats, frechet_distance
from .motion import clip_motion, frozen_share
from .networks import FEATURES, Videos, check_videos, load_network, read_videos

MINIMUM_CLIPS = FEATURES + 1  # below that a covariance of the features is singular
UNITS: dict[str, str] = {
    "frechet_video": "Fréchet distance in portrait video features, lower is better",
    "frechet_frame": "Fréchet distance in portrait frame features, lower is better",
    "motion": "px per frame at 64 px height",
    "frozen_share": "share of clips that stand still",
    "flicker": "levels of 255",
    "saturation": "levels of 255",
    "sharpness": "levels of 255",
    "diversity": "1 is two unrelated data clips",
    "adherence": "share of named attributes read right by the probe",
}


@dataclass(frozen=True)
class Reference:
    """Statistics of data clips that samples are compared with, built once."""

    video: FeatureStats
    frame: FeatureStats

    @classmethod
    def of(cls, videos: Videos, batch: int = 32) -> Reference:
        """Statistics of data clips uint8 (N, F, H, W, 3), N > 48.

        Raises:
            UserError: too few clips, or not clips.
        """
        return cls(
            FeatureStats.of(read_videos(load_network("video"), videos, batch).features),
            FeatureStats.of(read_videos(load_network("frame"), videos, batch).features),
        )

    def save(self, path: Path) -> None:
        """Write the statistics as safetensors, float64."""
        tensors = {}
        for name, stats in (("video", self.video), ("frame", self.frame)):
            tensors[f"{name}.mean"], tensors[f"{name}.covariance"] = stats.mean, stats.covariance
            tensors[f"{name}.count"] = torch.tensor(stats.count)
        write_safetensors(path, tensors, {"format": "w2svd-metric-reference-1"})

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            UserError: missing, broken, or another kind of file.
        """
        tensors, metadata = read_safetensors(path)
        if metadata.get("format") != "w2svd-metric-reference-1":
            raise UserError(f"{path} holds no reference statistics; delete it to have it made again")
        video, frame = (
            FeatureStats(tensors[f"{name}.mean"], tensors[f"{name}.covariance"], int(tensors[f"{name}.count"]))
            for name in ("video", "frame")
        )
        return cls(video, frame)


def measure(
    videos: Videos, captions: Sequence[str], reference: Reference | None, group_size: int, batch: int = 32
) -> dict[str, float]:
    """Every number of `UNITS` for a set of clips, as means over clips.

    Args:
        videos: uint8 (N, F, H, W, 3), any size and length; ordered so that each run of `group_size` clips has
            one caption.
        captions: N texts.
        reference: of portraits as data; None for other clips, of which the portrait networks can tell nothing.
        group_size: seeds per caption; 1 leaves `diversity` out.
        batch: clips read at a time.

    Returns:
        {name: number}. `adherence` is left out where no caption names a portrait attribute, and the Fréchet
        distances where there are not more clips than features (48), as in short validations. Without a
        reference motion, frozen_share, flicker, saturation and sharpness are all.

    Raises:
        UserError: not clips, captions that don't fit, or a group with two captions.
    """
    check_videos(videos)
    _check_groups(captions, len(videos), group_size)
    motion = clip_motion(videos)
    numbers = {"motion": float(motion.mean()), "frozen_share": frozen_share(motion)}
    for name, function in (("flicker", flicker), ("saturation", saturation), ("sharpness", sharpness)):
        numbers[name] = float(function(videos).mean())
    if reference is not None:
        numbers |= _as_portraits(videos, captions, reference, group_size, batch)
    return numbers


def _as_portraits(
    videos: Videos, captions: Sequence[str], reference: Reference, group_size: int, batch: int
) -> dict[str, float]:
    """What the portrait networks tell."""
    network = load_network("video")
    reading = read_videos(network, videos, batch)
    numbers: dict[str, float] = {}
    if len(videos) >= MINIMUM_CLIPS:
        frames = read_videos(load_network("frame"), videos, batch).features
        numbers["frechet_video"] = frechet_distance(FeatureStats.of(reading.features), reference.video)
        numbers["frechet_frame"] = frechet_distance(FeatureStats.of(frames), reference.frame)
    if group_size > 1:
        numbers["diversity"] = diversity(reading.features, group_size, reference.video)
    share = adherence(reading, network.attributes, captions)
    if share is not None:
        numbers["adherence"] = share
    return numbers


def _check_groups(captions: Sequence[str], count: int, group_size: int) -> None:
    if len(captions) != count:
        raise UserError(f"there are {count} clips but {len(captions)} captions; give one for each clip")
    if group_size < 1 or count % group_size:
        raise UserError(
            f"{count} clips can't be cut into groups of {group_size}; choose a group size that divides them"
        )
    for start in range(0, count, group_size):
        if len(set(captions[start : start + group_size])) > 1:
            raise UserError(
                f"clips {start} to {start + group_size - 1} form a group but have different captions; "
                "order the clips by caption"
            )
