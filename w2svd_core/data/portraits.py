"""Talking portraits drawn from a seed: the subject of the papers without anybody's face.

Every portrait has named attributes (:data:`ATTRIBUTES`) and many continuous ones that no caption tells.  A
caption names two to four of the attributes, so a caption stands for many portraits.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .drawing import Canvas, Colour
from .portrait_figure import BLACK, Look, figure, mix, room
from .portrait_motion import Motion, draw_motion, pose_at

DRAWING = "2"
"""Version of the drawing.  Caches carry it, so raise it with any change that a picture or a caption shows."""

HAIR: dict[str, Colour] = {
    "black": (0.13, 0.11, 0.13),
    "brown": (0.42, 0.25, 0.14),
    "blond": (0.93, 0.76, 0.36),
    "red": (0.80, 0.28, 0.10),
    "grey": (0.66, 0.67, 0.70),
    "pink": (0.95, 0.45, 0.66),
}
SKIN: dict[str, Colour] = {
    "pale": (0.99, 0.86, 0.77),
    "tan": (0.91, 0.70, 0.52),
    "brown": (0.70, 0.47, 0.32),
    "dark": (0.44, 0.28, 0.20),
}
CLOTHES: dict[str, Colour] = {
    "red": (0.82, 0.20, 0.22),
    "blue": (0.20, 0.38, 0.78),
    "green": (0.22, 0.58, 0.36),
    "yellow": (0.95, 0.78, 0.25),
    "purple": (0.50, 0.29, 0.66),
    "white": (0.93, 0.93, 0.91),
    "black": (0.18, 0.18, 0.21),
}
WALL: dict[str, Colour] = {
    "blue": (0.50, 0.70, 0.87),
    "green": (0.56, 0.77, 0.60),
    "yellow": (0.96, 0.86, 0.56),
    "pink": (0.95, 0.72, 0.74),
    "purple": (0.71, 0.63, 0.85),
    "grey": (0.73, 0.74, 0.75),
    "teal": (0.26, 0.57, 0.58),
}
STYLES = ("short", "long", "curly", "spiky", "bun", "bald")
ACTIONS = ("talking", "smiling", "nodding", "shaking the head", "looking around")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair style": STYLES,
    "hair colour": (*HAIR, "none"),
    "skin": tuple(SKIN),
    "clothes": tuple(CLOTHES),
    "wall": tuple(WALL),
    "glasses": ("yes", "no"),
    "beard": ("yes", "no"),
    "action": ACTIONS,
}
"""Every attribute that a caption may name, and its values.  Only the bald have the hair colour ``none``."""


@dataclass(frozen=True)
class Portrait:
    """Everything that a seed decides.

    ``named`` lists the attributes that the caption tells; ``look`` and ``motion`` hold what no caption tells.
    """

    seed: int
    hair_style: str
    hair_colour: str
    skin: str
    clothes: str
    wall: str
    glasses: bool
    beard: bool
    action: str
    named: tuple[str, ...]
    look: Look
    motion: Motion


def portrait_from_seed(seed: int) -> Portrait:
    """The portrait of a seed (any integer from 0 up)."""
    rng = np.random.default_rng([seed, 0x57A7])
    hair_style = _pick(rng, STYLES)
    hair = _pick(rng, tuple(HAIR))
    skin = _pick(rng, tuple(SKIN))
    clothes = _pick(rng, tuple(CLOTHES))
    wall = _pick(rng, tuple(WALL))
    glasses = bool(rng.random() < 0.4)
    beard = bool(rng.random() < (0.3 if hair_style in ("short", "curly", "spiky", "bald") else 0.0))
    action = _pick(rng, ACTIONS)
    named = _named(rng, bald=hair_style == "bald")
    look = _draw_look(rng, hair, skin, clothes, wall)
    motion = draw_motion(rng)
    colour = "none" if hair_style == "bald" else hair
    return Portrait(seed, hair_style, colour, skin, clothes, wall, glasses, beard, action, named, look, motion)


def attributes(portrait: Portrait) -> dict[str, str]:
    """The true value of every attribute, with the keys of :data:`ATTRIBUTES`."""
    p = portrait
    return {
        "hair style": p.hair_style,
        "hair colour": p.hair_colour,
        "skin": p.skin,
        "clothes": p.clothes,
        "wall": p.wall,
        "glasses": "yes" if p.glasses else "no",
        "beard": "yes" if p.beard else "no",
        "action": p.action,
    }


def render(
    portrait: Portrait, frames: int = 17, height: int = 64, width: int = 64, fps: float = 8.0
) -> npt.NDArray[np.uint8]:
    """Draw a portrait as a clip.

    The same portrait at another size, length or frame rate shows the same person and the same movement.

    Args:
        frames: F, one or more.
        height, width: pixels.
        fps: frames a second.

    Returns:
        uint8 (F, H, W, 3), RGB.
    """
    times = np.arange(frames, dtype=np.float32) / np.float32(fps)
    pose = pose_at(portrait.motion, portrait.action, times)
    canvas = Canvas(room(portrait.look, height, width), frames)
    figure(portrait.look, pose, portrait.hair_style, portrait.glasses, portrait.beard, canvas)
    return canvas.frames()


def caption(portrait: Portrait) -> str:
    """A short caption that names two to four attributes; the same for the same seed."""
    value, named = attributes(portrait), portrait.named
    bald = "hair style" in named and value["hair style"] == "bald"
    having: list[str] = []
    if not bald and ("hair style" in named or "hair colour" in named):
        style = value["hair style"] if "hair style" in named else None
        having.append(_hair_phrase(style, value["hair colour"] if "hair colour" in named else None))
    having += [_phrase(key, value[key]) for key in ("skin", "glasses", "beard", "clothes") if key in named]
    text = "a bald person" if bald else "a person"
    if having:
        text += " with " + ", ".join(having[:-1]) + (" and " if len(having) > 1 else "") + having[-1]
    return ", ".join([text, *(_phrase(key, value[key]) for key in ("action", "wall") if key in named)])


def parse_caption(text: str) -> dict[str, str]:
    """The attributes that a caption names, ``{}`` for a text that :func:`caption` cannot have written."""
    head, _, tail = text.strip().partition(" person")
    if head not in ("a", "a bald"):
        return {}
    found: dict[str, str] = {"hair style": "bald"} if head == "a bald" else {}
    tail = tail.removeprefix(" with ").removeprefix(", ")
    for phrase in tail.replace(" and ", ", ").split(", ") if tail else []:
        if phrase not in _MEANING:
            return {}
        found.update(_MEANING[phrase])
    return found


def render_folder(
    folder: Path,
    count: int,
    first_seed: int,
    frames: int,
    height: int,
    width: int,
    fps: float,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``count`` portraits as ``<seed>.mp4`` with ``<seed>.txt``; pairs that exist are kept.

    Args:
        progress: called with the number of finished portraits and ``count``.

    Raises:
        UserError: a file cannot be written.
    """
    from ..files import atomic_write
    from .video import write_video

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        seed = first_seed + index
        clip, words = folder / f"{seed:07d}.mp4", folder / f"{seed:07d}.txt"
        if not (clip.is_file() and words.is_file()):
            portrait = portrait_from_seed(seed)
            write_video(clip, render(portrait, frames, height, width, fps), fps)
            with atomic_write(words) as path:
                path.write_text(caption(portrait) + "\n", encoding="utf-8")
        if progress is not None:
            progress(index + 1, count)


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]


def _named(rng: np.random.Generator, bald: bool) -> tuple[str, ...]:
    """Which two to four attributes the caption tells; the action most often."""
    weights = {key: 1.0 for key in ATTRIBUTES} | {"action": 4.0, "beard": 0.6, "glasses": 0.8}
    if bald:
        del weights["hair colour"]
    keys = list(weights)
    share = np.array([weights[key] for key in keys])
    chosen = rng.choice(len(keys), size=int(rng.integers(2, 5)), replace=False, p=share / share.sum())
    return tuple(keys[index] for index in sorted(chosen))


def _hair_phrase(style: str | None, colour: str | None) -> str:
    words = " ".join(part for part in (style if style != "bun" else None, colour, "hair") if part)
    return f"{words} in a bun" if style == "bun" else words


def _phrase(key: str, value: str) -> str:
    if key == "skin":
        return f"{value} skin"
    if key == "clothes":
        return f"a {value} shirt"
    if key == "wall":
        return f"{value} wall"
    if key == "glasses":
        return "glasses" if value == "yes" else "no glasses"
    if key == "beard":
        return "a beard" if value == "yes" else "no beard"
    return value


def _meanings() -> dict[str, dict[str, str]]:
    """Every phrase of the grammar and what it says."""
    table: dict[str, dict[str, str]] = {}
    for key in ("skin", "clothes", "wall", "glasses", "beard", "action"):
        table |= {_phrase(key, value): {key: value} for value in ATTRIBUTES[key]}
    for style in (None, *STYLES[:-1]):
        for colour in (None, *HAIR):
            said = {"hair style": style, "hair colour": colour}
            known = {key: value for key, value in said.items() if value is not None}
            if known:
                table[_hair_phrase(style, colour)] = known
    return table


_MEANING = _meanings()


def _jitter(rng: np.random.Generator, colour: Colour, hue: float, light: float) -> Colour:
    """A neighbour of a colour: hue moved by at most ``hue`` turns, brightness by the share ``light``."""
    h, s, v = colorsys.rgb_to_hsv(*colour)
    h = (h + rng.uniform(-hue, hue)) % 1.0
    s = min(s * rng.uniform(0.9, 1.1), 1.0)
    v = min(v * rng.uniform(1 - light, 1 + light), 1.0)
    return colorsys.hsv_to_rgb(h, s, v)


def _draw_look(rng: np.random.Generator, hair: str, skin: str, clothes: str, wall: str) -> Look:
    """Draw the parts of the appearance that no caption tells."""
    skin_colour = _jitter(rng, SKIN[skin], 0.008, 0.04)
    hair_colour = _jitter(rng, HAIR[hair], 0.012, 0.08)
    irises: tuple[Colour, ...] = (
        (0.30, 0.18, 0.10),
        (0.22, 0.45, 0.70),
        (0.25, 0.52, 0.32),
        (0.40, 0.42, 0.45),
    )
    frames: tuple[Colour, ...] = ((0.12, 0.11, 0.14), (0.45, 0.13, 0.13), (0.15, 0.22, 0.45))
    size = rng.uniform(0.58, 0.64)  # a close-up: at 32 px an eye is nearly four pixels wide
    side = -1.0 if rng.random() < 0.5 else 1.0
    return Look(
        skin=skin_colour,
        hair=hair_colour,
        brow=mix(hair_colour, BLACK, 0.35 if hair != "black" else 0.1),
        clothes=_jitter(rng, CLOTHES[clothes], 0.015, 0.06),
        wall=_jitter(rng, WALL[wall], 0.015, 0.04),
        iris=irises[int(rng.integers(len(irises)))],
        lips=mix(skin_colour, (0.72, 0.16, 0.20), rng.uniform(0.40, 0.70)),
        frame=frames[int(rng.integers(len(frames)))],
        x=rng.uniform(-0.06, 0.06),
        y=rng.uniform(-0.15, -0.07),
        size=size,
        face_width=rng.uniform(0.74, 0.88),
        jaw=rng.uniform(0.05, 0.24),
        eye_gap=rng.uniform(0.31, 0.37),
        eye_size=rng.uniform(0.165, 0.205),
        brow_height=rng.uniform(0.36, 0.42),
        brow_bend=rng.uniform(0.4, 1.9),
        nose_length=rng.uniform(0.20, 0.27),
        nose_width=rng.uniform(0.10, 0.15),
        mouth_width=rng.uniform(0.28, 0.36),
        mouth_height=rng.uniform(0.53, 0.60),
        lip=rng.uniform(0.045, 0.075),
        hairline=rng.uniform(-0.66, -0.52),
        parting=rng.uniform(-0.3, 0.3),
        volume=rng.uniform(0.02, 0.12),
        shoulders=rng.uniform(1.35, 1.65),
        light=rng.uniform(-0.8, 0.8),
        blush=rng.uniform(0.2, 0.55),
        collar=int(rng.integers(4)),
        decor=int(rng.integers(15)),  # a window, a lamp or a picture for one in five
        decor_x=side * rng.uniform(0.66, 0.80),
        lens=int(rng.integers(2)),
    )
