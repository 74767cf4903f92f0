"""How much moves: dense optical flow (Farneback 2003), in pixels per frame of a clip that is 64 px high.

Flow is measured on brightness at 64 px height whatever the size of the clip, so that sizes can be compared;
it depends on the frame rate. Noise and flicker make flow, too: read motion beside `appearance.flicker`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..opencv import import_cv2
from .networks import Videos, check_videos

FLOW_SIDE = 64  # px: optical flow is measured at this height, whatever the size of the clips

FROZEN_BELOW = 0.06  # px per frame: a clip with less stands still (the calmest of 80 portraits has 0.13)


def clip_motion(videos: Videos) -> NDArray[np.float64]:
    """Mean flow of each clip of uint8 (N, F, H, W, 3): (N,), pixels per frame at 64 px height."""
    check_videos(videos)
    cv2 = import_cv2()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # at 64 px threads only cost
    try:
        return np.array([_mean_flow(cv2, video) for video in videos])
    finally:
        cv2.setNumThreads(threads)


def _mean_flow(cv2: Any, video: Videos) -> float:
    _, h, w, _ = video.shape
    size = (max(8, round(w * FLOW_SIDE / h)), FLOW_SIDE)
    total = 0.0
    previous = None
    for frame in video:
        grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        if (w, h) != size:
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if h > FLOW_SIDE else cv2.INTER_LINEAR)
        if previous is not None and not np.array_equal(previous, grey):  # equal frames: no flow, no rounding
            flow = cv2.calcOpticalFlowFarneback(previous, grey, None, 0.5, 2, 9, 1, 5, 1.1, 0)
            total += float(np.hypot(flow[..., 0], flow[..., 1]).mean())
        previous = grey
    return total / (len(video) - 1)


def frozen_share(motion: NDArray[np.float64], threshold: float = FROZEN_BELOW) -> float:
    """The share in [0, 1] of clips whose motion (N,) is below `threshold` pixels per frame."""
    return float((motion < threshold).mean())
