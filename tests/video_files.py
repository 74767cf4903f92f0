"""Video files as people have them, written by PyAV: grey frames whose level tells their number, and others."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Video = npt.NDArray[np.uint8]


def counting(count: int, height: int = 32, width: int = 48, channels: int = 3) -> Video:
    """Flat grey frames: `numbers` reads back which is which."""
    levels = (np.arange(count) * 8 + 30).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, channels)).copy()


def numbers(video: Video) -> list[int]:
    """The numbers of counting frames."""
    return [round((float(frame.mean()) - 30) / 8) for frame in video]


def halves(left: Sequence[int], right: Sequence[int], count: int = 3, height: int = 32, width: int = 48) -> Video:
    """Frames of two colours, RGB or RGBA."""
    video = np.zeros((count, height, width, len(left)), np.uint8)
    video[:, :, : width // 2], video[:, :, width // 2 :] = left, right
    return video


def write(
    path: Path,
    video: Video,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 8,
    times: Sequence[float] | None = None,
    **stream_settings: Any,
) -> Path:
    """Write a file. `times` in seconds, one for each frame, make a variable frame rate; other settings of the stream
    or its codec: `rotation`, `aspect` (of a pixel), `transfer`."""
    milli = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], pixels
        if codec == "libx264":
            stream.options = {"crf": "1"}
        if "rotation" in stream_settings:
            stream.set_display_rotation(stream_settings["rotation"])
        if "aspect" in stream_settings:
            stream.codec_context.sample_aspect_ratio = stream_settings["aspect"]
        if times is not None:
            stream.time_base = stream.codec_context.time_base = milli
        for number, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if video.shape[3] == 4 else "rgb24")
            if "transfer" in stream_settings:
                frame.color_trc = stream_settings["transfer"]
                stream.codec_context.color_trc = stream_settings["transfer"]
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), milli
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
