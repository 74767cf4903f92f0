"""Anti-aliased shapes on a stack of frames, from signed distances, in plain numpy.

A :class:`Canvas` holds all frames of a clip at once as planes ``(3, F, H, W)``. The shorter side of a frame
spans [-1, 1], x points right and y points down, so a picture looks the same at any resolution. A shape is a
signed distance (negative inside) in the coordinates of a :class:`Patch`, the part of the canvas that it
touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]  # float32 but for a few shades
Colour = tuple[float, float, float]
Number = float | np.floating[Any] | Array  # a constant, or one value per frame with shape (F, 1, 1)


@dataclass(frozen=True)
class Patch:
    """A window of the canvas with local coordinates.

    Attributes:
        rows, columns: the window, in pixels.
        x, y: local coordinates, (F, h, w), in units of ``scale``.
        pixel: size of one pixel in local units.
    """

    rows: slice
    columns: slice
    x: Array
    y: Array
    pixel: float


class Canvas:
    """Frames under construction, float32 in [0, 1], planes (3, F, H, W)."""

    def __init__(self, background: Array, frames: int) -> None:
        """Start every frame from one picture.

        Args:
            background: (3, H, W), in [0, 1].
            frames: F.
        """
        _, height, width = background.shape
        self.planes: Array = np.repeat(background[:, None], frames, axis=1)  # 3 f h w
        self.x, self.y = axes(height, width)
        self.pixel = 2.0 / min(height, width)

    def patch(self, cx: Number, cy: Number, angle: Number, scale: float, reach: float) -> Patch:
        """Local coordinates around a moving, turning centre.

        Args:
            cx, cy: centre in canvas units, constant or (F, 1, 1).
            angle: clockwise turn in radians, constant or (F, 1, 1).
            scale: canvas units for each local unit.
            reach: radius that the shape can touch, in local units.
        """
        r = reach * scale + 2 * self.pixel
        columns = _window(self.x, float(np.min(cx)) - r, float(np.max(cx)) + r)
        rows = _window(self.y, float(np.min(cy)) - r, float(np.max(cy)) + r)
        frames = self.planes.shape[1]
        dx = (self.x[None, None, columns] - cx) / scale  # f|1 1 w
        dy = (self.y[None, rows, None] - cy) / scale  # f|1 h 1
        cos, sin = np.cos(angle), np.sin(angle)
        shape = (frames, rows.stop - rows.start, columns.stop - columns.start)
        x = np.broadcast_to(dx * cos + dy * sin, shape).astype(np.float32, copy=False)
        y = np.broadcast_to(dy * cos - dx * sin, shape).astype(np.float32, copy=False)
        return Patch(rows, columns, x, y, self.pixel / scale)

    def paint(
        self,
        patch: Patch,
        distance: Array,
        colour: Colour,
        *,
        shade: Number | None = None,
        opacity: Number = 1.0,
        soft: float = 0.0,
    ) -> None:
        """Blend a colour over the inside of a shape.

        Args:
            distance: signed distance in local units, (F, h, w).
            colour: RGB in [0, 1].
            shade: factor on the colour, broadcastable to (F, h, w).
            opacity: 0 to 1, constant or broadcastable.
            soft: width of a blurred edge in local units, on top of one pixel.
        """
        edge = patch.pixel + soft
        cover = np.clip(0.5 - distance * np.float32(1.0 / edge), 0.0, 1.0)
        if not isinstance(opacity, float) or opacity != 1.0:
            cover = cover * opacity
        for channel in range(3):
            plane = self.planes[channel, :, patch.rows, patch.columns]
            tone = np.float32(colour[channel])
            plane += cover * ((tone if shade is None else shade * tone) - plane)

    def frames(self) -> npt.NDArray[np.uint8]:
        """The pictures as uint8 (F, H, W, 3)."""
        levels = np.clip(self.planes * np.float32(255.0) + np.float32(0.5), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(levels.transpose(1, 2, 3, 0))


def axes(height: int, width: int) -> tuple[Array, Array]:
    """Pixel centres along x (W,) and y (H,) in canvas units."""
    unit = 2.0 / min(height, width)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) * unit
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) * unit
    return x.astype(np.float32), y.astype(np.float32)


def _window(axis: Array, low: float, high: float) -> slice:
    """The indices of a sorted axis that lie in [low, high]; empty when the shape is off the picture."""
    start, stop = np.searchsorted(axis, (low, high))
    return slice(int(start), int(max(start, stop)))


def ellipse(x: Array, y: Array, rx: Number, ry: Number) -> Array:
    """Distance to an ellipse at the origin, exact at its edge to first order."""
    qx, qy = x / rx, y / ry
    k1 = np.sqrt(qx * qx + qy * qy)
    gx, gy = qx / rx, qy / ry
    k2 = np.sqrt(gx * gx + gy * gy) + np.float32(1e-6)
    distance: Array = k1 * (k1 - 1.0) / k2
    return np.where(k1 < 1e-3, -np.minimum(rx, ry), distance).astype(np.float32, copy=False)


def circle(x: Array, y: Array, radius: Number) -> Array:
    """Distance to a circle at the origin."""
    distance: Array = np.sqrt(x * x + y * y) - radius
    return distance


def box(x: Array, y: Array, half_width: Number, half_height: Number, corner: float) -> Array:
    """Distance to a rectangle at the origin whose corners are rounded with the radius ``corner``."""
    qx = np.abs(x) - half_width + corner
    qy = np.abs(y) - half_height + corner
    ox, oy = np.maximum(qx, 0), np.maximum(qy, 0)
    distance: Array = np.sqrt(ox * ox + oy * oy) + np.minimum(np.maximum(qx, qy), 0) - corner
    return distance


def arc(x: Array, y: Array, half_width: Number, bend: Number, thickness: Number) -> Array:
    """Distance to a stroke along the parabola y = bend * x^2, |x| < half_width, with round ends."""
    inside = np.clip(x, -half_width, half_width)
    off_x = x - inside
    slope = 2 * bend * inside
    off_y = (y - bend * inside * inside) / np.sqrt(1 + slope * slope)
    distance: Array = np.sqrt(off_x * off_x + off_y * off_y) - thickness
    return distance


def segment(x: Array, y: Array, ax: float, ay: float, bx: float, by: float, thickness: Number) -> Array:
    """Distance to a stroke from (ax, ay) to (bx, by) with round ends."""
    ex, ey = bx - ax, by - ay
    along = np.clip(((x - ax) * ex + (y - ay) * ey) / max(ex * ex + ey * ey, 1e-9), 0, 1)
    return circle(x - ax - along * ex, y - ay - along * ey, thickness)
