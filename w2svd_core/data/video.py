"""Video files in and out (PyAV), and pictures out as PNG.

A video is uint8 (F, H, W, 3), RGB.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..opencv import import_cv2
from .decoding import Image, file_pictures
from .image_folders import IMAGES, folder_pictures, read_picture

Video = npt.NDArray[np.uint8]  # f h w 3

CONTAINERS = (".mp4", ".mov", ".mkv")
"""What :func:`write_video` writes."""
SMPTE170M, LIMITED = 6, 1  # the matrix (BT.601) and the range that its RGB is converted by, in FFmpeg's numbers


def read_video(
    path: Path,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
) -> Video:
    """Read the beginning of a video.

    Args:
        path: any file with a video stream that FFmpeg reads, or a folder of images, a frame from each.
        frames: how many frames to return from the start; all when None.
        height, width: pixels to return.  The picture is cropped around its centre to the wanted aspect, then
            resized by area averages.  When one is None it follows from the aspect of the file; when both are
            None the size stays.
        fps: frames a second to return: for each time the nearest frame of the file.  The file's own if None.  A
            folder of images has no rate, and its frames are returned as they are.

    Returns:
        uint8 (F, H, W, 3), RGB.

    Raises:
        UserError: the file is missing, broken, truncated, has no video stream or fewer frames than wanted.
    """
    path = Path(path)
    pictures = [_fit(picture, height, width) for picture in itertools.islice(_pictures(path, fps), frames)]
    if not pictures:
        raise UserError(f"{path} has no readable frame; copy or encode it again")
    if frames is not None and len(pictures) < frames:
        rate = "" if fps is None or path.is_dir() else f" at {fps:g} fps"
        raise UserError(
            f"{path} is too short: it has {len(pictures)} frames{rate} and {frames} are needed; "
            "remove it or ask for fewer frames"
        )
    return np.stack(pictures)


@dataclass(frozen=True)
class Excerpt:
    """The beginning of a clip.

    Attributes:
        video: its frames, cropped and resized.
        goes_on: whether the clip has more frames than these.
        height, width: of the clip's own picture, in px.
    """

    video: Video
    goes_on: bool
    height: int
    width: int


def read_excerpt(path: Path, frames: int, fps: float, size: Callable[[int, int], tuple[int, int]]) -> Excerpt:
    """Read at most `frames` frames, at a size that follows from the clip's own.

    Args:
        path, fps: as for :func:`read_video`.
        frames: at most so many; a shorter clip is returned whole.
        size: from the (height, width) of the clip's picture to those to return.

    Raises:
        UserError: the file is missing, broken, truncated or has no video stream.
    """
    path = Path(path)
    pictures = _pictures(path, fps)
    first = next(pictures, None)
    if first is None:
        raise UserError(f"{path} has no readable frame; copy or encode it again")
    height, width = first.shape[:2]
    wanted = size(height, width)
    some = [_fit(picture, *wanted) for picture in itertools.islice(itertools.chain([first], pictures), frames)]
    return Excerpt(np.stack(some), next(pictures, None) is not None, height, width)


def _pictures(path: Path, fps: float | None) -> Iterator[Image]:
    return folder_pictures(path) if path.is_dir() else file_pictures(path, fps)


def read_first_frame(path: Path, height: int, width: int) -> Image:
    """An image, or the first frame of a video, cropped around its centre and resized.

    Raises:
        UserError: it is missing, broken, or neither of the two.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGES:
        if not path.is_file():
            raise UserError(f"{path} is not there; check the path of the image")
        return np.array(_fit(read_picture(path), height, width))  # Pillow's own memory can't be written to
    return np.asarray(read_video(path, 1, height, width)[0], np.uint8)


def write_video(
    path: Path, video: Video, fps: float, crf: int = 12, pixel_format: str = "yuv420p", loops: int = 1
) -> None:
    """Write H.264, whole or not at all.

    Args:
        path: ends in one of :data:`CONTAINERS`.
        video: uint8 (F, H, W, 3), RGB; even sizes for ``yuv420p``.
        fps: frames a second.
        crf: quality of x264, 0 (lossless) to 51.
        pixel_format: ``yuv420p`` plays everywhere; ``yuv444p`` keeps the colour of every pixel and takes
            odd sizes.
        loops: how often the clip is shown.

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
            stream.codec_context.colorspace, stream.codec_context.color_range = SMPTE170M, LIMITED
            for picture in itertools.chain.from_iterable(itertools.repeat(video, loops)):
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


def _fit(picture: Image, height: int | None, width: int | None) -> Image:
    """Crop around the centre to the wanted aspect, then resize."""
    h, w = picture.shape[:2]
    if height is None and width is None:
        return np.ascontiguousarray(picture)
    height = height or max(round((width or w) * h / w), 1)
    width = width or max(round(height * w / h), 1)
    crop_h, crop_w = min(h, max(round(w * height / width), 1)), min(w, max(round(h * width / height), 1))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    picture = np.ascontiguousarray(picture[top : top + crop_h, left : left + crop_w])
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = height <= crop_h and width <= crop_w
    cv2 = import_cv2()
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, np.uint8)
