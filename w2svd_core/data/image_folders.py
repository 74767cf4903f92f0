"""A folder of images as one clip: a frame from each, sorted by name, with numbers in the order of their values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError
from .decoding import Image, over_black

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Files that count as frames."""


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder, `frame2` before `frame10`; names that start with a dot are left alone."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(IMAGES) and not e.name.startswith(".")]
    return [folder / name for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"([0-9]+)", name.lower())
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts] + [(0, 0, name)]


def folder_pictures(folder: Path) -> Iterator[Image]:
    """The images as RGB, upright, transparency over black, read as they are asked for.

    Raises:
        UserError: while reading: no image, a broken one, or one of another size than the first.
    """
    size: tuple[int, ...] | None = None
    files = frame_files(folder)
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGES)}); check the path of the clip")
    for path in files:
        picture = read_picture(path)
        size = size or picture.shape
        if picture.shape != size:
            raise UserError(
                f"{path} is {picture.shape[1]}x{picture.shape[0]} px, the frames before it {size[1]}x{size[0]}; "
                "bring all images of a clip to one size"
            )
        yield picture


def read_picture(path: Path) -> Image:
    """An image file as RGB, upright, transparency over black.

    Raises:
        UserError: it is broken, or no image.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        with Pillow.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I;16"):
                grey = (np.asarray(picture) >> 8).astype(np.uint8)
                return np.stack([grey] * 3, axis=-1)
            if picture.mode in ("I", "F"):
                raise UserError(f"{path} holds numbers of 32 bits in each pixel; save it with 8 bits in each colour")
            if picture.has_transparency_data:
                return over_black(np.asarray(picture.convert("RGBA")))
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not a readable image ({reason}); save or copy it again") from error
