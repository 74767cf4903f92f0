"""Video files in and out (PyAV), and pictures out as PNG.

A video is uint8 (F, H, W, 3), RGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..opencv import import_cv2

Image = npt.NDArray[np.uint8]  # h w 3
Video = npt.NDArray[np.uint8]  # f h w 3

CONTAINERS = (".mp4", ".mov", ".mkv")
"""What :func:`write_video` writes."""


def read_video(
    path: Path,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
) -> Video:
    """Read the beginning of a video.

    Args:
        path: any file with a video stream that FFmpeg reads.
        frames: how many frames to return from the start; all when None.
        height, width: pixels to return.  The picture is cropped around its centre to the wanted aspect, then
            resized by area averages.  When one is None it follows from the aspect of the file; when both are
            None the size stays.
        fps: frames a second to return: for each time the nearest frame of the file.  The file's own if None.

    Returns:
        uint8 (F, H, W, 3), RGB.

    Raises:
        UserError: the file is missing, broken, truncated, has no video stream or fewer frames than wanted.
    """
    import av

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there; check the path of the video")
    pictures: list[Image] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no video stream; give a file with pictures")
            timed = _decode(container, path)
            for frame in timed if fps is None else _resample(timed, fps, _step(container.streams.video[0])):
                pictures.append(_fit(_picture(frame[1]), height, width))
                if len(pictures) == frames:
                    break
    except (av.error.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} is broken or truncated ({reason}); copy or encode it again") from error
    if not pictures:
        raise UserError(f"{path} has no readable frame; copy or encode it again")
    if frames is not None and len(pictures) < frames:
        rate = "" if fps is None else f" at {fps:g} fps"
        raise UserError(
            f"{path} is too short: it has {len(pictures)} frames{rate} and {frames} are needed; "
            "remove it or ask for fewer frames"
        )
    return np.stack(pictures)


def write_video(path: Path, video: Video, fps: float, crf: int = 12, pixel_format: str = "yuv420p") -> None:
    """Write H.264, whole or not at all.

    Args:
        path: ends in one of :data:`CONTAINERS`.
        video: uint8 (F, H, W, 3), RGB; even sizes for ``yuv420p``.
        fps: frames a second.
        crf: quality of x264, 0 (lossless) to 51.
        pixel_format: ``yuv420p`` plays everywhere; ``yuv444p`` keeps the colour of every pixel and takes
            odd sizes.

    Raises:
        UserError: the suffix, the size, the encoder or the disk does not serve.
        ValueError: the array is not a video.
    """
    import av

    from ..files import atomic_write

    path = Path(path)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or len(video) == 0:
        raise ValueError(f"a video is uint8 (F, H, W, 3), not {video.dtype} {video.shape}")
    if path.suffix.lower() not in CONTAINERS:
        raise UserError(f"cannot write {path}: the name must end in one of {', '.join(CONTAINERS)}")
    height, width = video.shape[1:3]
    if pixel_format == "yuv420p" and (height % 2 or width % 2):
        raise UserError(f"cannot write {path}: {width}x{height} has an odd side; choose even sizes or yuv444p")
    try:
        with atomic_write(path) as temporary, av.open(str(temporary), "w") as container:
            stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            # with its macroblock tree x264 wrote two different files from the same pictures, about one time in four
            stream.options = {"crf": str(crf), "x264-params": "mbtree=0"}
            stream.codec_context.thread_count = 1  # x264 would start a thread for every core, for clips this small too
            for picture in video:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (av.error.FFmpegError, ValueError) as error:
        raise UserError(f"cannot write {path}: the H.264 encoder says {error}; check PyAV and the disk") from error


def write_png(path: Path, image: Image) -> None:
    """Write a picture, uint8 (H, W, 3), as PNG, whole or not at all.

    Raises:
        UserError: the disk does not serve.
    """
    from PIL import Image as Pillow

    from ..files import atomic_write

    with atomic_write(Path(path)) as temporary:
        Pillow.fromarray(image).save(temporary, format="PNG")


def _decode(container: Any, path: Path) -> Iterator[tuple[float, Any]]:
    """Every frame with its time in seconds from the first; tells when the file ends before its index does."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    step, start, packets, count = _step(stream), None, 0, 0
    for packet in container.demux(stream):
        packets += packet.size > 0
        for frame in packet.decode():
            time = count * step if frame.time is None else float(frame.time)
            start = time if start is None else start
            yield time - start, frame
            count += 1
    if stream.frames and packets < stream.frames:
        raise UserError(
            f"{path} is truncated: its index lists {stream.frames} frames and {packets} are there; "
            "copy or encode it again"
        )


def _step(stream: Any) -> float:
    """Seconds between two frames of the file."""
    rate = stream.average_rate or stream.guessed_rate
    return 1.0 / float(rate) if rate else 1.0 / 25.0


def _resample(timed: Iterator[tuple[float, Any]], fps: float, step: float) -> Iterator[tuple[float, Any]]:
    """For each time k / fps the nearest frame; the last frame lasts for ``step`` seconds."""
    if fps <= 0:
        raise UserError(f"fps is {fps:g}; give a number above 0")
    wanted = 0
    last: tuple[float, Any] | None = None
    for time, frame in timed:
        while last is not None and wanted / fps < (last[0] + time) / 2:
            yield wanted / fps, last[1]
            wanted += 1
        last = (time, frame)
    while last is not None and wanted / fps < last[0] + step - 1e-4:
        yield wanted / fps, last[1]
        wanted += 1


def _picture(frame: Any) -> Image:
    """A decoded frame as RGB, upright."""
    picture: Image = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise quarters, as cameras note them
    return np.rot90(picture, turns) if turns else picture


def _fit(picture: Image, height: int | None, width: int | None) -> Image:
    """Crop around the centre to the wanted aspect, then resize."""
    h, w = picture.shape[:2]
    if height is None and width is None:
        return np.ascontiguousarray(picture)
    height = height or max(round((width or w) * h / w), 1)
    width = width or max(round(height * w / h), 1)
    crop_h, crop_w = min(h, round(w * height / width)), min(w, round(h * width / height))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    picture = np.ascontiguousarray(picture[top : top + crop_h, left : left + crop_w])
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = height <= crop_h and width <= crop_w
    cv2 = import_cv2()
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)
