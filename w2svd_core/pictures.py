"""Clips beside each other, with captions: as a video and as a sheet of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Image = NDArray[np.uint8]  # h w 3
Video = NDArray[np.uint8]  # f h w 3
Clips = NDArray[np.uint8]  # n f h w 3

CELL_HEIGHT = 144  # px that a frame is enlarged to, about
GAP = 6  # px between clips
TEXT = 15  # px, size of a label
LINE = TEXT + 5  # px from line to line
MARGIN = 5  # px under a text, for the tails of its letters
INK, GREY, PAPER = (25, 28, 33), (90, 96, 105), (255, 255, 255)


def enlarge(picture: Image, height: int = CELL_HEIGHT) -> Image:
    """A small picture by whole pixels to about a height; a large one as it is."""
    from PIL import Image as Pillow

    times = max(1, round(height / picture.shape[0]))
    if times == 1:
        return picture
    size = (picture.shape[1] * times, picture.shape[0] * times)
    return np.asarray(Pillow.fromarray(picture).resize(size, Pillow.Resampling.BICUBIC))


def shrink(picture: Image, tallest: int | None) -> Image:
    """A picture that is taller than that, made smaller."""
    from PIL import Image as Pillow

    height, width = picture.shape[:2]
    if tallest is None or height <= tallest:
        return picture
    size = (max(round(width * tallest / height), 1), tallest)
    return np.asarray(Pillow.fromarray(picture).resize(size, Pillow.Resampling.BOX))


def spread(video: Video, count: int) -> list[Image]:
    """`count` frames from the first to the last, fewer when the clip has fewer."""
    places = np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)
    return [video[place] for place in places]


def grid(cells: Sequence[Sequence[Image]], heads: Sequence[str], captions: Sequence[str]) -> Image:
    """Pictures of one size in rows, a caption over each row, the columns' names on top; even sides.

    Args:
        cells: a row for each caption, a picture for each head.
        heads: names of the columns.
        captions: texts over the rows; an empty one takes no room.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font: Font = ImageFont.load_default(size=TEXT)
    height, width = cells[0][0].shape[:2]
    full = GAP + len(heads) * (width + GAP)
    names = [wrap(head, font, width) for head in heads]
    texts = [wrap(caption, font, full - 2 * GAP) if caption else [] for caption in captions]
    top = GAP + MARGIN + LINE * max(len(name) for name in names)
    total = top + sum(GAP + MARGIN + LINE * len(text) + height for text in texts) + GAP
    sheet = Pillow.new("RGB", (full + full % 2, total + total % 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        _write(draw, name, GAP + column * (width + GAP), GAP, INK, font)
    y = top
    for row, text in zip(cells, texts, strict=True):
        _write(draw, text, GAP, y + 2, GREY, font)
        y += LINE * len(text) + MARGIN
        for column, picture in enumerate(row):
            sheet.paste(Pillow.fromarray(picture), (GAP + column * (width + GAP), y))
        y += height + GAP
    return np.asarray(sheet)


def wrap(text: str, font: Any, width: int) -> list[str]:
    """Break a text into lines that fit a width in px; a longer word keeps a line for itself."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def _write(draw: Any, lines: Sequence[str], x: int, y: int, colour: tuple[int, int, int], font: Any) -> None:
    for number, text in enumerate(lines):
        draw.text((x, y + number * LINE), text, colour, font)


def side_by_side(
    columns: Sequence[Clips], heads: Sequence[str], captions: Sequence[str], tallest: int | None = None
) -> Video:
    """The clips of each column as one labelled video, a row for each caption.

    Args:
        tallest: px that a frame is shrunk to where it is taller; None leaves it.
    """
    pages = []
    for frame in range(columns[0].shape[1]):
        cells = [[shrink(enlarge(clips[row][frame]), tallest) for clips in columns] for row in range(len(captions))]
        pages.append(grid(cells, heads, captions))
    return np.stack(pages)


def contact_sheet(columns: Sequence[Clips], heads: Sequence[str], captions: Sequence[str], frames: int = 4) -> Image:
    """Some frames of each clip, joined to a strip, as one labelled picture."""
    cells = [[strip(clips[row], frames) for clips in columns] for row in range(len(captions))]
    return grid(cells, heads, captions)


def strip(video: Video, frames: int) -> Image:
    """Some frames of a clip beside each other, enlarged."""
    return np.concatenate([enlarge(frame) for frame in spread(video, frames)], axis=1)
