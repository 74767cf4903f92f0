"""Draws one portrait: the room, the body, the head and the face.

Lengths on the head are in units of its half height, x right and y down, from an origin between eyes and nose.
A depth moves a part when the head turns, so that features slide over the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .drawing import Array, Canvas, Colour, Number, Patch, arc, axes, box, circle, ellipse, segment
from .portrait_motion import Pose


@dataclass(frozen=True)
class Look:
    """What the seed decides about appearance besides the named attributes.

    Colours are RGB in [0, 1]; ``x``, ``y`` and ``size`` place the head in canvas units; the rest is in head
    units or, for kinds, a number that picks a variant.
    """

    skin: Colour
    hair: Colour
    brow: Colour
    clothes: Colour
    wall: Colour
    iris: Colour
    lips: Colour
    frame: Colour
    x: float
    y: float
    size: float
    face_width: float
    jaw: float
    eye_gap: float
    eye_size: float
    brow_height: float
    brow_bend: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_height: float
    lip: float
    hairline: float
    parting: float
    volume: float
    shoulders: float
    light: float
    blush: float
    collar: int
    decor: int
    decor_x: float
    lens: int


@dataclass(frozen=True)
class Head:
    """The placed head: turns head coordinates into patches of the canvas."""

    canvas: Canvas
    look: Look
    pose: Pose
    cx: Array
    cy: Array

    def patch(self, u: Number, v: Number, depth: float, reach: float) -> Patch:
        """Local coordinates around the point (u, v) of the head, ``depth`` before the axis of turning."""
        p, size = self.pose, self.look.size
        u = u * np.cos(p.yaw) + depth * np.sin(p.yaw)
        v = v * np.cos(p.pitch) + depth * np.sin(p.pitch)
        cos, sin = np.cos(p.roll), np.sin(p.roll)
        x = self.cx + size * (u * cos - v * sin)
        y = self.cy + size * (u * sin + v * cos)
        return self.canvas.patch(x, y, p.roll, size, reach)

    def face(self, x: Array, y: Array, grow: float = 0.0) -> Array:
        """Distance to the outline of the face, widened by ``grow``; the jaw is narrower than the brow."""
        narrow = 1.0 - self.look.jaw * np.clip(y, 0, 1) ** 2
        return ellipse(x / narrow, y, self.look.face_width + grow, 1.0 + grow)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour that has ``share`` of ``b`` and the rest of ``a``."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


BLACK: Colour = (0.0, 0.0, 0.0)
WHITE: Colour = (1.0, 1.0, 1.0)
INK: Colour = (0.13, 0.10, 0.12)


def room(look: Look, height: int, width: int) -> Array:
    """The still background (3, H, W): a wall with soft light and, for some, a window, a lamp or a picture."""
    x, y = axes(height, width)
    glow = 1.07 - 0.13 * (y[:, None] + 1) - 0.07 * (x[None] - look.light) ** 2  # h w
    wall = np.asarray(look.wall, np.float32)[:, None, None] * glow[None]
    canvas = Canvas(np.clip(wall, 0, 1).astype(np.float32), 1)
    side = look.decor_x
    if look.decor == 1:  # window
        patch = canvas.patch(side, -0.5, 0.0, 1.0, 0.62)
        canvas.paint(patch, box(patch.x, patch.y, 0.34, 0.42, 0.03), mix(look.wall, WHITE, 0.75))
        for px in (-0.155, 0.155):
            for py in (-0.19, 0.19):
                pane = box(patch.x - px, patch.y - py, 0.13, 0.165, 0.01)
                canvas.paint(patch, pane, (0.66, 0.83, 0.95), shade=1.02 - 0.2 * patch.y)
    elif look.decor == 2:  # lamp with a halo
        patch = canvas.patch(side, -0.62, 0.0, 1.0, 1.0)
        canvas.paint(patch, circle(patch.x, patch.y, 0.32), (1.0, 0.95, 0.75), opacity=0.55, soft=0.6)
        canvas.paint(patch, segment(patch.x, patch.y, 0, -0.5, 0, -0.1, 0.015), mix(look.wall, BLACK, 0.6))
        shade = np.maximum(circle(patch.x, patch.y - 0.06, 0.19), patch.y - 0.06)
        canvas.paint(patch, shade, (0.99, 0.86, 0.52))
    elif look.decor == 3:  # picture
        patch = canvas.patch(side, -0.45, 0.0, 1.0, 0.45)
        canvas.paint(patch, box(patch.x, patch.y, 0.25, 0.3, 0.02), mix(look.wall, BLACK, 0.45))
        canvas.paint(patch, box(patch.x, patch.y, 0.2, 0.25, 0.01), mix(look.wall, WHITE, 0.7))
        canvas.paint(patch, circle(patch.x + 0.05, patch.y - 0.04, 0.09), mix(look.iris, look.wall, 0.3))
    return np.clip(canvas.planes[:, 0], 0, 1)


def body(head: Head) -> None:
    """Shoulders, neck and collar; they follow the head a little and breathe."""
    look, pose, canvas = head.look, head.pose, head.canvas
    cx = look.x + look.size * 0.35 * pose.dx
    cy = look.y + look.size * (0.88 + 0.015 * pose.breath)
    skin, cloth = look.skin, look.clothes
    torso = canvas.patch(cx, cy, 0.0, look.size, 3.4)
    x, y = torso.x, torso.y
    top = 0.42
    width = look.shoulders * (1 + 0.008 * pose.breath)
    light = 1.04 - 0.10 * np.abs(x) - 0.12 * look.light * x
    shape = ellipse(x, np.minimum(y - top - 0.85, 0), width, 0.85)
    canvas.paint(torso, shape, cloth, shade=light)
    lean = 0.5 * pose.dx
    neck = box(x - lean * np.clip(0.5 - y, 0, 1), y - 0.1, 0.34, 0.62, 0.2)
    if look.collar == 1:  # an open shirt: a triangle of skin and two wings
        canvas.paint(torso, np.maximum(np.abs(x) * 0.85 + (y - top) * 0.52 - 0.36, 0.25 - y), skin, shade=light * 0.95)
    canvas.paint(torso, neck, skin, shade=light * 0.93)
    if look.collar == 3:  # a roll-neck
        canvas.paint(torso, box(x, y - 0.46, 0.42, 0.22, 0.12), mix(cloth, BLACK, 0.10), shade=light)
    under = ellipse(x - pose.dx - 0.3 * pose.yaw, y - 0.02 - pose.dy - 0.3 * pose.pitch, 0.5, 0.3)
    canvas.paint(torso, np.maximum(under, neck), mix(skin, BLACK, 0.35), opacity=0.55, soft=0.12)
    if look.collar == 0:  # a round neck
        canvas.paint(
            torso,
            np.abs(ellipse(x, y - 0.5, 0.42, 0.26)) - 0.045 + np.maximum(0.5 - y, 0),
            mix(cloth, BLACK, 0.25),
        )
    elif look.collar == 1:
        for s in (-1.0, 1.0):
            wing = segment(x * s, y, 0.34, 0.36, 0.14, 0.86, 0.085)
            canvas.paint(torso, wing, mix(cloth, WHITE, 0.35), shade=light)
    elif look.collar == 2:  # stripes
        stripe = np.abs((y - 0.95) % 0.5 - 0.25) - 0.075
        canvas.paint(torso, np.maximum(stripe, shape), mix(cloth, WHITE, 0.42), shade=light)


def hair_back(head: Head, style: str) -> None:
    """The hair behind the head."""
    look, canvas = head.look, head.canvas
    dark = mix(look.hair, BLACK, 0.22)
    vol = look.volume
    if style == "long":
        patch = head.patch(0.0, 0.3, -0.25, 2.1)
        wide = look.face_width + 0.16 + vol + 0.10 * np.clip(patch.y, -1, 1)
        canvas.paint(patch, box(patch.x, patch.y, wide, 1.38, 0.8), dark)
    elif style == "bun":
        patch = head.patch(0.5 * look.parting, -1.2 - vol, -0.2, 0.6)
        ball = circle(patch.x, patch.y, 0.40 + 0.5 * vol)
        canvas.paint(patch, ball, look.hair, shade=0.95 - 0.25 * patch.y)
    elif style == "curly":
        patch = head.patch(0.0, -0.25, -0.15, 1.75)
        canvas.paint(patch, _curls(patch, look), dark, shade=1.05 - 0.2 * patch.y)
    elif style == "spiky":
        patch = head.patch(0.0, -0.1, -0.1, 1.75)
        angle = np.arctan2(patch.x, -patch.y)  # 0 is up
        teeth = np.abs((angle * 1.6 + look.parting) % 1.0 - 0.5) * 2
        height = 0.98 + vol + (0.16 + vol) * teeth * np.clip(1.5 - np.abs(angle), 0, 1)
        radius = ellipse(patch.x, patch.y, look.face_width + 0.12, 1.0)
        canvas.paint(patch, np.maximum(radius + 1 - height, patch.y - 0.1), look.hair, shade=0.92 - 0.1 * patch.y)


def _curls(patch: Patch, look: Look) -> Array:
    """Distance to a wreath of curls around the top and the sides of the head."""
    radius = 0.36 + 0.5 * look.volume
    nearest = ellipse(patch.x, patch.y, look.face_width + 0.12, 1.0) + 0.02
    for angle in np.linspace(-2.0, 2.0, 9):
        u = (look.face_width + 0.12) * np.sin(angle)
        v = -0.95 * np.cos(angle)
        nearest = np.minimum(nearest, circle(patch.x - u, patch.y - v, radius))
    return nearest


def hair_front(head: Head, style: str) -> None:
    """The cap of hair over the forehead, cut at the hairline."""
    if style == "bald":
        return
    look, canvas, pose = head.look, head.canvas, head.pose
    patch = head.patch(0.0, 0.0, 0.0, 1.4)
    x, y = patch.x, patch.y
    front = x - 0.35 * np.sin(pose.yaw)  # the hairline slides with the face
    line = look.hairline + 0.35 * np.sin(pose.pitch)
    away = np.abs(front - look.parting)
    if style == "long":
        edge = line - 0.08 + 0.95 * away * np.sqrt(away + 0.02)
    elif style == "curly":
        edge = line + 0.35 * front * front + 0.07 * np.cos(11 * front)
    elif style == "bun":
        edge = line - 0.10 + 0.55 * front * front
    elif style == "spiky":
        edge = line + 0.3 * front * front + 0.09 * np.abs((front * 3.2 + look.parting) % 1.0 - 0.5) * 2
    else:
        edge = line + 0.22 * (front - look.parting) + 0.55 * front * front
    cap = head.face(x, y, 0.07 + look.volume)
    sheen = np.exp(-18.0 * (y + 0.78 - 0.25 * x * x) ** 2)
    canvas.paint(patch, np.maximum(cap, (y - edge) * 0.8), look.hair, shade=0.92 + 0.22 * sheen - 0.10 * look.light * x)


def skull(head: Head) -> None:
    """Ears and the shaded face."""
    look, canvas, pose = head.look, head.canvas, head.pose
    for side in (-1.0, 1.0):
        patch = head.patch(side * (look.face_width + 0.02), 0.08, -0.12, 0.32)
        canvas.paint(patch, ellipse(patch.x, patch.y, 0.15, 0.21), look.skin, shade=0.9)
        canvas.paint(patch, ellipse(patch.x + side * 0.01, patch.y, 0.07, 0.12), mix(look.skin, BLACK, 0.25), soft=0.05)
    patch = head.patch(0.0, 0.0, 0.0, 1.15)
    x, y = patch.x, patch.y
    lit = x - 0.4 * look.light - 0.25 * pose.yaw
    light = 1.06 - 0.17 * lit * lit - 0.07 * (y + 0.3) ** 2
    canvas.paint(patch, head.face(x, y), look.skin, shade=light)
    for side in (-1.0, 1.0):
        patch = head.patch(side * (look.eye_gap + 0.14), 0.34, 0.3, 0.5)
        rosy = mix(look.skin, (0.93, 0.35, 0.33), 0.55)
        canvas.paint(patch, circle(patch.x, patch.y, 0.15), rosy, opacity=look.blush, soft=0.25)


def beard(head: Head) -> None:
    """A full beard around the mouth."""
    look = head.look
    patch = head.patch(0.0, 0.0, 0.06, 1.25)
    x, y = patch.x, patch.y
    front = x - 0.3 * np.sin(head.pose.yaw)
    edge = 0.36 + 0.3 * np.sin(head.pose.pitch) - 0.75 * np.maximum(np.abs(front) - 0.34, 0) + 0.1 * np.abs(front)
    shape = np.maximum(head.face(x, y, 0.055), edge - y)
    head.canvas.paint(patch, shape, mix(look.hair, BLACK, 0.1), shade=1.08 - 0.2 * y, soft=0.03)


def mouth(head: Head) -> None:
    """Lips, the dark inside and a hint of teeth; corners rise with the smile."""
    look, pose, canvas = head.look, head.pose, head.canvas
    opening = 0.025 + 0.24 * pose.mouth
    width = look.mouth_width * (1.0 + 0.42 * pose.smile - 0.16 * pose.mouth)
    patch = head.patch(0.0, look.mouth_height + 0.02 * pose.mouth, 0.42, 0.66)
    x = patch.x / np.cos(pose.yaw)
    bend = 1.3 * pose.smile
    y = patch.y + bend * x * x - 0.5 * bend * width * width  # level along the smile
    lips = ellipse(x, y - 0.25 * opening, width, opening + look.lip)
    canvas.paint(patch, lips, look.lips, shade=1.0 - 0.35 * y)
    inside = ellipse(x, y - 0.25 * opening, width * 0.88, opening)
    canvas.paint(patch, inside, (0.26, 0.07, 0.09))
    teeth = np.maximum(inside + 0.02, y + 0.42 * opening - 0.02)
    canvas.paint(patch, teeth, (0.97, 0.95, 0.92), opacity=np.clip(opening * 14 - 0.8, 0, 1))
    tongue = np.maximum(inside + 0.015, 0.80 * opening - y)
    canvas.paint(patch, tongue, (0.80, 0.36, 0.38), opacity=np.clip(opening * 8 - 0.7, 0, 1))


def nose(head: Head) -> None:
    """A soft shadow, a ball and a light spot that stick out when the head turns."""
    look, canvas = head.look, head.canvas
    patch = head.patch(0.0, look.nose_length, 0.6, 0.42)
    shadow = ellipse(patch.x, patch.y - 0.045, look.nose_width * 1.1, 0.085)
    canvas.paint(patch, shadow, mix(look.skin, (0.45, 0.12, 0.10), 0.38), opacity=0.8, soft=0.05)
    ball = ellipse(patch.x, patch.y + 0.05, look.nose_width, 0.14)
    canvas.paint(patch, ball, mix(look.skin, WHITE, 0.13), soft=0.08)


def eyes(head: Head) -> None:
    """Whites, irises that follow the gaze, lids that blink, and brows."""
    look, pose, canvas = head.look, head.pose, head.canvas
    squint = 1.0 - 0.25 * np.maximum(pose.smile - 0.4, 0)
    lid = look.eye_size * 0.82 * squint * (1.0 - pose.blink)
    for side in (-1.0, 1.0):
        patch = head.patch(side * look.eye_gap, -0.06, 0.36, 0.42)
        x = patch.x / np.cos(pose.yaw)
        y = patch.y
        socket = ellipse(x, y, look.eye_size * 1.05, lid + 0.015)
        canvas.paint(patch, socket - 0.035, mix(look.skin, BLACK, 0.45))
        canvas.paint(patch, socket, (0.98, 0.98, 0.97), opacity=np.clip(1 - 1.2 * pose.blink, 0, 1))
        gx = x - 0.105 * pose.gaze_x - 0.03 * pose.yaw
        gy = y - 0.07 * pose.gaze_y
        seen = np.clip(1 - 1.2 * pose.blink, 0, 1)
        canvas.paint(patch, np.maximum(circle(gx, gy, 0.135), socket), look.iris, opacity=seen)
        canvas.paint(patch, np.maximum(circle(gx, gy, 0.08), socket), INK, opacity=seen)
        canvas.paint(patch, circle(gx + 0.045, gy + 0.05, 0.028), WHITE, opacity=0.9 * seen)
        lash = arc(x, y + lid, look.eye_size * 1.0, 1.6 * lid / look.eye_size * 2.2, 0.028)
        canvas.paint(patch, lash, mix(look.brow, INK, 0.7))
        lift = 0.05 * pose.mouth - 0.04 * pose.blink + 0.03 * pose.smile
        patch = head.patch(side * (look.eye_gap + 0.01), -look.brow_height - lift, 0.36, 0.35)
        brow = arc(patch.x, patch.y, 0.19, look.brow_bend, 0.045)
        canvas.paint(patch, brow, look.brow)


def glasses(head: Head) -> None:
    """Two lenses with a rim, a bridge and a glint."""
    look, canvas, pose = head.look, head.canvas, head.pose
    radius = look.eye_size + 0.115
    for side in (-1.0, 1.0):
        patch = head.patch(side * (look.eye_gap + 0.01), -0.04, 0.42, 0.55)
        x = patch.x / np.cos(pose.yaw)
        lens = circle(x, patch.y, radius) if look.lens == 0 else box(x, patch.y, radius + 0.03, radius - 0.03, 0.1)
        glint = np.maximum(lens, np.abs(x + patch.y + 0.1) - 0.05)
        canvas.paint(patch, glint, WHITE, opacity=0.28)
        canvas.paint(patch, np.abs(lens) - 0.042, look.frame)
    patch = head.patch(0.0, -0.06, 0.46, 0.3)
    inner = max(look.eye_gap - radius, 0.03)
    canvas.paint(patch, arc(patch.x, patch.y, inner, 0.8, 0.035), look.frame)


def figure(look: Look, pose: Pose, hair_style: str, has_glasses: bool, has_beard: bool, canvas: Canvas) -> None:
    """Draw the whole person on the canvas, from back to front."""
    cx = np.asarray(look.x + look.size * pose.dx, np.float32)
    cy = np.asarray(look.y + look.size * (pose.dy + 0.008 * pose.breath), np.float32)
    head = Head(canvas, look, pose, cx, cy)
    hair_back(head, hair_style)
    body(head)
    skull(head)
    if has_beard:
        beard(head)
    nose(head)
    mouth(head)
    eyes(head)
    hair_front(head, hair_style)
    if has_glasses:
        glasses(head)
