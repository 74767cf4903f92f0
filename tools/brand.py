"""Draw the extension's icon and banner from the project's own portraits: python tools/brand.py"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from w2svd_core.data.portraits import portrait_from_seed, render  # noqa: E402

ICON, BANNER = 400, (1260, 540)  # px; the registry asks for a square of at most 400 and for 21:9
SHARES = (1.0, 0.72, 0.48, 0.24, 0.0)  # of noise, so that eyes see the way
FACES = (3, 27, 35, 39)  # seeds of the portraits in the banner, from top to bottom
INK, PAPER, GREY = (24, 28, 36), (246, 247, 249), (98, 106, 118)


def face(seed: int, side: int) -> NDArray[np.uint8]:
    """A portrait in the middle of its clip."""
    return render(portrait_from_seed(seed), frames=5, height=side, width=side, fps=8.0)[2]


def noised(picture: NDArray[np.uint8], share: float, seed: int) -> NDArray[np.uint8]:
    """A picture on its way from noise: (1 - share) x + share noise, in cells of some pixels as latents have them."""
    side, cell = picture.shape[0], max(1, picture.shape[0] // 32)
    grains = np.random.default_rng(seed).normal(0, 1, (-(-side // cell), -(-side // cell), 3))
    noise = np.kron(grains, np.ones((cell, cell, 1)))[:side, :side]
    mixed = (1 - share) * (picture / 127.5 - 1) + share * 0.4 * noise
    return ((mixed + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def icon() -> Image.Image:
    """One face, half out of the noise."""
    clean = face(FACES[0], ICON)
    slope = np.linspace(0, 1, ICON)[None, :, None]
    left = noised(clean, 0.65, 1)
    picture = np.where(slope < 0.42, left, clean)
    return Image.fromarray(picture.astype(np.uint8))


def banner() -> Image.Image:
    """The name, and faces that come out of noise in four steps."""
    width, height = BANNER
    sheet = Image.new("RGB", BANNER, PAPER)
    draw = ImageDraw.Draw(sheet)
    side, gap = 124, 8
    left = width - len(SHARES) * (side + gap) - 20
    top = (height - len(FACES) * (side + gap) + gap) // 2
    for row, seed in enumerate(FACES):
        picture = face(seed, side)
        for column, share in enumerate(SHARES):
            place = (left + column * (side + gap), top + row * (side + gap))
            sheet.paste(Image.fromarray(noised(picture, share, seed)), place)
    draw.text((56, 150), "W2SVD", INK, ImageFont.load_default(size=120))
    draw.text((62, 306), "few-step video models,", GREY, ImageFont.load_default(size=38))
    draw.text((62, 356), "distilled in your graph", GREY, ImageFont.load_default(size=38))
    return sheet


def thumbnail(title: str, number: int) -> Image.Image:
    """A workflow's picture among the templates: its title, and faces of its own on their way out of the noise."""
    side, gap = 138, 9
    sheet = Image.new("RGB", (3 * side + 4 * gap, 2 * side + 3 * gap + 66), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap + 3, 16), title, INK, ImageFont.load_default(size=28))
    for row, seed in enumerate((40 + 2 * number, 41 + 2 * number)):
        picture = face(seed, side)
        for column, share in enumerate((0.8, 0.4, 0.0)):
            place = (gap + column * (side + gap), 66 + row * (side + gap))
            sheet.paste(Image.fromarray(noised(picture, share, seed)), place)
    return sheet


if __name__ == "__main__":
    for name, picture in (("icon", icon()), ("banner", banner())):
        picture.save(ROOT / "docs" / f"{name}.png", optimize=True)
