"""How a portrait moves: smooth curves over time for the head, the eyes and the mouth.

Times are in seconds, so a clip of another length or frame rate shows the same movement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .drawing import Array


@dataclass(frozen=True)
class Motion:
    """What the seed decides about movement.  Rates are in Hz, phases in radians, times in seconds."""

    syllable_rate: float
    syllable_phase: float
    stress_rate: float
    stress_phase: float
    mouth_amount: float
    blink_period: float
    blink_time: float
    gaze_rate: float
    gaze_phase: float
    gaze_tilt: float
    head_rate: float
    head_phase: float
    head_amount: float
    sway_rate: float
    sway_phase: float
    sway_amount: float
    yaw_rest: float
    pitch_rest: float
    roll_rest: float
    breath_rate: float
    breath_phase: float


@dataclass(frozen=True)
class Pose:
    """The state of every moving part in each frame; all arrays have the shape (F, 1, 1).

    ``yaw``, ``pitch`` and ``roll`` are radians; ``dx`` and ``dy`` move the head in units of its half height;
    ``mouth``, ``smile`` and ``blink`` run from 0 to 1; ``gaze_x``, ``gaze_y`` and ``breath``
    from -1 to 1.
    """

    yaw: Array
    pitch: Array
    roll: Array
    dx: Array
    dy: Array
    mouth: Array
    smile: Array
    blink: Array
    gaze_x: Array
    gaze_y: Array
    breath: Array


def draw_motion(rng: np.random.Generator) -> Motion:
    """Draw the movement of one portrait."""
    turn = 2 * math.pi
    return Motion(
        syllable_rate=rng.uniform(1.1, 1.7),
        syllable_phase=rng.uniform(0, turn),
        stress_rate=rng.uniform(0.4, 0.8),
        stress_phase=rng.uniform(0, turn),
        mouth_amount=rng.uniform(0.75, 1.0),
        blink_period=rng.uniform(1.5, 2.8),
        blink_time=rng.uniform(0.0, 1.5),
        gaze_rate=rng.uniform(0.3, 0.45),
        gaze_phase=rng.uniform(0, turn),
        gaze_tilt=rng.uniform(-0.5, 0.5),
        head_rate=rng.uniform(0.42, 0.70),
        head_phase=rng.uniform(0, turn),
        head_amount=rng.uniform(0.8, 1.15),
        sway_rate=rng.uniform(0.2, 0.4),
        sway_phase=rng.uniform(0, turn),
        sway_amount=rng.uniform(0.6, 1.4),
        yaw_rest=rng.normal(0, 0.13),
        pitch_rest=rng.normal(0, 0.06),
        roll_rest=rng.normal(0, 0.05),
        breath_rate=rng.uniform(0.3, 0.5),
        breath_phase=rng.uniform(0, turn),
    )


def pose_at(motion: Motion, action: str, times: Array) -> Pose:
    """The pose at each time.

    Args:
        motion: the movement that the seed decided.
        action: one of the values of the attribute ``action``.
        times: (F,) seconds.
    """
    m = motion
    t = times.reshape(-1, 1, 1).astype(np.float32)

    def wave(rate: float, phase: float) -> Array:
        value: Array = np.sin(np.float32(2 * math.pi * rate) * t + np.float32(phase))
        return value

    sway, sway2 = wave(m.sway_rate, m.sway_phase), wave(m.sway_rate * 1.63, m.sway_phase * 1.9 + 1.0)
    yaw = m.yaw_rest + 0.09 * m.sway_amount * sway
    pitch = m.pitch_rest + 0.04 * m.sway_amount * sway2
    roll = m.roll_rest + 0.045 * m.sway_amount * wave(m.sway_rate * 0.8, m.sway_phase + 2.2)
    dx, dy = 0.07 * m.sway_amount * sway2, 0.03 * m.sway_amount * sway
    mouth = np.zeros_like(t)
    smile = np.full_like(t, 0.32)
    gaze_x = 0.35 * wave(m.gaze_rate, m.gaze_phase)
    gaze_y = 0.25 * m.gaze_tilt * wave(m.gaze_rate * 1.3, m.gaze_phase + 0.7)
    beat = wave(m.head_rate, m.head_phase)
    if action == "talking":
        syllables = 0.5 + 0.5 * wave(m.syllable_rate, m.syllable_phase)
        mouth = m.mouth_amount * syllables * (0.72 + 0.28 * wave(m.stress_rate, m.stress_phase))
        pitch = pitch + 0.05 * wave(m.stress_rate, m.stress_phase + 0.8)
    elif action == "smiling":
        smile = 0.72 + 0.28 * wave(m.stress_rate * 0.6, m.stress_phase)
        mouth = np.maximum(smile - 0.45, 0) * 0.5
        roll = roll + 0.06 * wave(m.stress_rate * 0.6, m.stress_phase + 0.5)
    elif action == "nodding":
        pitch = pitch + 0.42 * m.head_amount * beat
        dy = dy + 0.10 * m.head_amount * beat
    elif action == "shaking the head":
        yaw = yaw + 0.55 * m.head_amount * beat
        gaze_x = gaze_x - 0.45 * beat
    elif action == "looking around":
        glance = wave(m.gaze_rate, m.gaze_phase)
        gaze_x = np.tanh(2.4 * glance) * 0.95
        gaze_y = m.gaze_tilt * wave(m.gaze_rate * 0.5, m.gaze_phase + 1.2)
        yaw = yaw + 0.14 * wave(m.gaze_rate, m.gaze_phase - 0.5)
    since = (t - m.blink_time + m.blink_period / 2) % m.blink_period - m.blink_period / 2
    blink = np.exp(-((since / 0.16) ** 2))
    return Pose(
        *(
            np.asarray(part, np.float32)
            for part in (
                yaw,
                pitch,
                roll,
                dx,
                dy,
                mouth,
                smile,
                blink,
                gaze_x,
                gaze_y,
                wave(m.breath_rate, m.breath_phase),
            )
        )
    )
