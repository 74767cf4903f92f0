"""Does a clip keep the face of the frame that it was given?

    identity = mean over later frames t of cos(f_t - m, f_0 - m)

f are the portrait frame features (`networks.py`) of every fourth frame, f_0 those of the given first frame, m the mean
of unrelated portraits. Around that mean unrelated people average 0; the same picture gives 1. A person who moves and
talks stays a little below 1, as do blur, burnt colours and drift. On 96 held-out renders of 17 frames at 32 px: 0.94
against their own first frame (the lowest 0.74), 0.01 on average against another's (standard deviation 0.26: people who
look alike are similar); one of 9120 pairs of strangers was nearer than a clip's own. `tests/test_identity.py` holds the
measure to about that on fewer.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .networks import FRAME_STRIDE, FeatureNetwork, Videos, read_videos

METRIC = "identity"
IDENTITY_UNITS = {METRIC: "likeness of later frames to the given first one: 1 the same, 0 unrelated people"}


def identity(
    videos: Videos, first_frames: Videos, unrelated: Tensor, network: FeatureNetwork, batch: int = 32
) -> NDArray[np.float64]:
    """How alike the later frames of clips are to the first frames that they were given, each in [-1, 1].

    Args:
        videos: uint8 (N, F, H, W, 3), F at least 5; their own first frame is left out.
        first_frames: uint8 (N, H, W, 3), one for each clip, of any size.
        unrelated: mean (48,) of the features of unrelated portraits, such as `Reference.frame.mean`.
        network: the portrait frame network.
        batch: clips read at a time.

    Returns:
        (N,), float64.

    Raises:
        UserError: not clips, too short ones, or not a first frame for each.
    """
    n = len(videos)
    if len(first_frames) != n:
        raise UserError(f"there are {n} clips but {len(first_frames)} first frames; give one for each clip")
    still = np.repeat(first_frames[:, None], FRAME_STRIDE, axis=1)  # as many frames as make one reading
    given = read_videos(network, still, batch).features - unrelated  # n d
    frames = read_videos(network, videos, batch).features.view(n, -1, len(unrelated)) - unrelated  # n t d
    if frames.shape[1] < 2:
        raise UserError(
            f"identity needs clips of at least {FRAME_STRIDE + 1} frames, not {videos.shape[1]}; give longer ones"
        )
    likeness: NDArray[np.float64] = F.cosine_similarity(frames[:, 1:], given[:, None], dim=-1).mean(1).numpy()
    return likeness
