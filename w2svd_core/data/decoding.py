"""Out of a video file: upright RGB pictures with their times, at the file's frames or at another rate.

What a file may hold, and what becomes of it:

- a rotation tag: the picture is turned upright;
- a variable frame rate: times count, not frame numbers;
- more than 8 bits: rounded to 8, by the colour matrix and range that the file names; HDR (PQ, HLG) is refused, since
  without tone mapping its colours would come out wrong;
- transparency: drawn over black;
- pixels that are not square: the picture is stretched to its display size;
- a cover picture beside sound: no video stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..opencv import import_cv2

Image = npt.NDArray[np.uint8]  # h w 3

HDR = {16: "PQ", 18: "HLG"}
"""Transfer curves by their number in the standard (ITU-T H.273)."""


def file_pictures(path: Path, fps: float | None) -> Iterator[Image]:
    """The pictures of a video file one after another, decoded as they are asked for.

    Args:
        path: any file with a video stream that FFmpeg reads.
        fps: pictures a second; the file's own frames if None.

    Raises:
        UserError: while reading: the file is missing, broken, truncated, HDR or without a video stream.
    """
    import av

    if not path.is_file():
        raise UserError(f"{path} is not there; check the path of the video")
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            aspect = float(stream.sample_aspect_ratio or 1)
            timed = _decode(container, stream, path)
            for _, frame in timed if fps is None else _resample(timed, fps, _step(stream)):
                yield _picture(frame, aspect, path)
    except (av.error.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} is broken or truncated ({reason}); copy or encode it again") from error


def over_black(picture: npt.NDArray[np.uint8]) -> Image:
    """A picture with transparency, uint8 (H, W, 4), straight alpha, over black."""
    alpha = picture[..., 3:].astype(np.uint16)
    return ((picture[..., :3] * alpha + 127) // 255).astype(np.uint8)


def _video_stream(container: Any, path: Path) -> Any:
    from av.stream import Disposition

    for stream in container.streams.video:
        if not Disposition.attached_pic & stream.disposition:
            return stream
    raise UserError(f"{path} has no video stream; give a file with pictures")


def _decode(container: Any, stream: Any, path: Path) -> Iterator[tuple[float, Any]]:
    """Every frame with its time in seconds from the first; tells when the file ends before its index does."""
    stream.thread_type = "AUTO"
    decoder = _transparent_decoder(stream)
    step, start, packets, count, end = _step(stream), None, 0, 0, 0.0
    for packet in container.demux(stream):
        packets += packet.size > 0 or packet.dts is not None  # the last of all flushes the decoder
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        for frame in packet.decode() if decoder is None else decoder.decode(packet):
            time = count * step if frame.time is None else float(frame.time)
            start = time if start is None else start
            yield time - start, frame
            count += 1
    begins = float((stream.start_time or 0) * stream.time_base)
    told = float((stream.duration or 0) * stream.time_base)  # of what is to be shown: an edit list may leave frames out
    if stream.frames and packets < stream.frames and not (told and end - begins > told - 0.5 * step):
        raise UserError(
            f"{path} is truncated: its index lists {stream.frames} frames and {packets} are there; "
            "copy or encode it again"
        )


def _transparent_decoder(stream: Any) -> Any:
    """libvpx for a WebM with an alpha channel, which FFmpeg's own VP8 and VP9 decoders leave out; else None."""
    import av

    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    tagged = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    return av.CodecContext.create(name, "r") if tagged and name in av.codecs_available else None


def _step(stream: Any) -> float:
    """Seconds between two frames of the file, on average."""
    rate = stream.average_rate or stream.guessed_rate
    return 1.0 / float(rate) if rate else 1.0 / 25.0


def _resample(timed: Iterator[tuple[float, Any]], fps: float, step: float) -> Iterator[tuple[float, Any]]:
    """For each time k / fps the frame that is shown then, or the next one if that is as good as due.

    At an even frame rate this is the nearest frame. A frame that stands for longer is shown until its successor.
    The last frame lasts for as long as the file says, at most for `step` seconds.
    """
    if fps <= 0:
        raise UserError(f"fps is {fps:g}; give a number above 0")
    wanted = 0
    last: tuple[float, Any] | None = None
    for time, frame in timed:
        while last is not None and wanted / fps < time - max(min(time - last[0], step, 1 / fps), 0) / 2:
            yield wanted / fps, last[1]
            wanted += 1
        last = (time, frame)
    if last is None:
        return
    told = float((last[1].duration or 0) * (last[1].time_base or 0))
    end = last[0] + min(told or step, step)
    while wanted / fps < end - 1e-4:
        yield wanted / fps, last[1]
        wanted += 1


def _picture(frame: Any, aspect: float, path: Path) -> Image:
    """A decoded frame as RGB, upright, with square pixels."""
    if int(frame.color_trc) in HDR:
        raise UserError(
            f"{path} is an HDR video ({HDR[int(frame.color_trc)]}), whose colours would come out wrong; "
            "convert it to SDR first"
        )
    kind = frame.format
    if kind.has_palette or any(part.is_alpha for part in kind.components):
        picture: Image = over_black(frame.to_ndarray(format="rgba"))
    else:
        picture = frame.to_ndarray(format="rgb24")
    if aspect > 0 and aspect != 1:
        size = (max(round(picture.shape[1] * aspect), 1), picture.shape[0])
        picture = np.asarray(import_cv2().resize(picture, size), np.uint8)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise quarters, as cameras note them
    return np.rot90(picture, turns) if turns else picture
