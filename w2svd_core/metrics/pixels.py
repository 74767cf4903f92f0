"""Clips against clips, pixel by pixel, on the scale of 0 to 255 levels: for clips of any kind, no network needed."""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from .networks import Videos, check_videos

PIXEL_UNITS = {
    "pixel_diversity": "levels of 255 between two of the clips",
    "pixel_difference": "levels of 255 from the reference, clip by clip",
}


def pixel_diversity(videos: Videos) -> float:
    """Root mean square difference of two clips out of uint8 (N, F, H, W, 3), over all pairs; 0 means equal clips.

    Raises:
        UserError: not clips, or fewer than 2.
    """
    check_videos(videos)
    if len(videos) < 2:
        raise UserError("pixel diversity compares clips with each other, but there is one clip; give at least 2")
    # the mean square over pairs is twice the unbiased variance
    variances = [videos[:, frame].astype(np.float64).var(axis=0, ddof=1).mean() for frame in range(videos.shape[1])]
    return float(np.sqrt(2 * np.mean(variances)))


def pixel_difference(videos: Videos, reference: Videos) -> float:
    """Root mean square difference of two sets of clips uint8 (N, F, H, W, 3), the first with the first and so on.

    Raises:
        UserError: not clips, or two shapes.
    """
    check_videos(videos)
    if videos.shape != reference.shape:
        raise UserError(f"clips of shape {videos.shape} can't be compared with {reference.shape}; use one shape")
    squares = [
        np.square(one.astype(np.float32) - other).mean(dtype=np.float64)
        for one, other in zip(videos, reference, strict=True)
    ]
    return float(np.sqrt(np.mean(squares)))
