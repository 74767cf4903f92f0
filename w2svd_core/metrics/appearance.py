"""Flicker, saturation and sharpness of clips, each one number per clip, on the scale of 0 to 255 levels.

All functions take uint8 (N, F, H, W, 3) RGB and return float64 (N,). They work on the clips as they are:
compare only clips of one size and frame rate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .networks import LUMA, Videos, check_videos

Numbers = NDArray[np.float64]


def brightness(video: Videos) -> NDArray[np.float32]:
    """Rec. 601 luma (F, H, W) of one clip (F, H, W, 3), 0 to 255."""
    return video.astype(np.float32) @ np.array(LUMA, dtype=np.float32)


def flicker(videos: Videos) -> Numbers:
    """Mean absolute second difference in time of brightness, averaged over a grid of 8 x 8 cells (levels).

    A steady change (a slow turn, a fade) has no second difference; cells instead of pixels keep moving edges
    small, and instead of whole frames they see local pulsing that would cancel in the frame's mean.
    """
    check_videos(videos)
    return np.array([_clip_flicker(brightness(video)) for video in videos])


def _clip_flicker(luma: NDArray[np.float32], cells: int = 8) -> float:
    rows = np.linspace(0, luma.shape[1], cells + 1).astype(int)[:-1]
    columns = np.linspace(0, luma.shape[2], cells + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(luma.astype(np.float64), rows, axis=1), columns, axis=2)  # f 8 8
    heights = np.diff(np.append(rows, luma.shape[1]))[:, None]
    widths = np.diff(np.append(columns, luma.shape[2]))[None, :]
    means = sums / (heights * widths)
    return float(np.abs(means[2:] - 2 * means[1:-1] + means[:-2]).mean())


def saturation(videos: Videos) -> Numbers:
    """Mean chroma: the largest minus the smallest of a pixel's red, green and blue (levels; HSV's S * V)."""
    check_videos(videos)
    return np.array([(video.max(-1) - video.min(-1)).mean(dtype=np.float64) for video in videos])


def sharpness(videos: Videos) -> Numbers:
    """Mean absolute Laplacian of brightness (levels): falls with blur, rises with noise."""
    check_videos(videos)
    return np.array([_clip_sharpness(brightness(video)) for video in videos])


def _clip_sharpness(luma: NDArray[np.float32]) -> float:
    inner = luma[:, 1:-1, 1:-1]
    around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return float(np.abs(around - 4 * inner).mean(dtype=np.float64))
