"""How different the clips of one caption are: a student that forgets modes draws one head for all seeds."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..errors import UserError
from .frechet import FeatureStats
from .networks import Videos, check_videos

CELLS = 16  # across a frame, so that noise and fine edges count little


def diversity(features: Tensor, group_size: int, data: FeatureStats) -> float:
    """Mean distance between clips of the same caption and different seeds.

    The distance is Euclidean in the portrait video features, divided by sqrt(2 tr C) with C the covariance of
    the data: that is the root mean square distance of two unrelated data clips, so that about 1 means "as
    different as any two clips", and 0 means equal clips. Captions name a part of the attributes, so real
    clips of one caption are below 1.

    Args:
        features: (N, D), clip after clip: `group_size` seeds of the first caption, then of the second,
            and so on.
        group_size: L >= 2, seeds per caption; N is a multiple of it.
        data: statistics of the data in the same features.

    Raises:
        UserError: L is below 2 or does not divide N.
    """
    return apart(features, group_size) / math.sqrt(2 * data.total_variance)


def caption_diversity(videos: Videos, group_size: int) -> float:
    """Mean distance between clips of the same caption and different seeds in levels of 255, where no network knows the
    clips: the root mean square difference over a grid of 16 x 16 cells of each frame.

    A number of this project's own, to be compared with that of other clips of the same captions and size alone.

    Args:
        videos: uint8 (N, F, H, W, 3), ordered as in `diversity`.
        group_size: as in `diversity`.

    Raises:
        UserError: not clips, or L is below 2 or does not divide N.
    """
    check_videos(videos)
    frames = (torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2).double() for video in videos)
    cells = torch.stack([adaptive_avg_pool2d(clip, CELLS).flatten() for clip in frames])
    return apart(cells, group_size) / math.sqrt(cells.shape[1])


def apart(features: Tensor, group_size: int) -> float:
    """Mean Euclidean distance between two rows of one group, of features (N, D) in runs of `group_size`.

    Raises:
        UserError: the size is below 2 or does not divide N.
    """
    count, dims = features.shape
    if group_size < 2 or count % group_size or count == 0:
        raise UserError(
            f"diversity needs groups of at least 2 clips with one caption, but {count} clips can't be cut "
            f"into groups of {group_size}; choose a group size of at least 2 that divides the number of clips"
        )
    groups = features.double().view(-1, group_size, dims)  # g l d
    differences = groups.unsqueeze(1) - groups.unsqueeze(2)  # g l l d
    distances = differences.square().sum(-1).sqrt()
    pairs = distances.shape[0] * group_size * (group_size - 1)
    return float(distances.sum()) / pairs
