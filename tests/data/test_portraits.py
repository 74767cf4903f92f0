"""Portraits: the same for a seed, told truly by their captions, alive and smooth."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from w2svd_core.data.portraits import (
    ATTRIBUTES,
    Portrait,
    attributes,
    caption,
    parse_caption,
    portrait_from_seed,
    render,
    render_folder,
)
from w2svd_core.data.video import read_video

MANY = [portrait_from_seed(seed) for seed in range(500)]


def mean_step(video: npt.NDArray[np.uint8]) -> float:
    """Mean absolute change from frame to frame, in levels."""
    return float(np.abs(np.diff(video.astype(np.float32), axis=0)).mean())


def test_same_seed_same_clip() -> None:
    first, second = (render(portrait_from_seed(7)) for _ in range(2))
    assert first.shape == (17, 64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, render(portrait_from_seed(8)))


def test_attributes_stay_in_their_vocabularies_and_every_value_occurs() -> None:
    seen = {key: Counter(attributes(portrait)[key] for portrait in MANY) for key in ATTRIBUTES}
    assert {key: set(counts) for key, counts in seen.items()} == {
        key: set(values) for key, values in ATTRIBUTES.items()
    }
    assert all(min(counts.values()) >= 25 for counts in seen.values())


def test_captions_tell_two_to_four_true_attributes() -> None:
    for portrait in MANY:
        text = caption(portrait)
        said = parse_caption(text)
        assert 2 <= len(said) <= 4, text
        assert said == {key: attributes(portrait)[key] for key in portrait.named}, text
        assert len(text.replace(",", "").split()) <= 20


def test_captions_leave_much_open() -> None:
    counts = Counter(len(parse_caption(caption(portrait))) for portrait in MANY)
    assert min(counts[2], counts[3], counts[4]) > 100
    told = Counter(key for portrait in MANY for key in portrait.named)
    assert told["action"] > 350
    assert min(told.values()) > 50


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a person with long red hair and glasses, talking, green wall",
            {
                "hair style": "long",
                "hair colour": "red",
                "glasses": "yes",
                "action": "talking",
                "wall": "green",
            },
        ),
        (
            "a bald person with no glasses, shaking the head",
            {"hair style": "bald", "glasses": "no", "action": "shaking the head"},
        ),
        ("a person with blond hair in a bun", {"hair style": "bun", "hair colour": "blond"}),
        (
            "a person with dark skin, a beard and a red shirt",
            {"skin": "dark", "beard": "yes", "clothes": "red"},
        ),
        ("a person", {}),
        ("", {}),
        ("a cat with green hair", {}),
        ("a person with green hair, talking", {}),
    ],
)
def test_parse_caption(text: str, said: dict[str, str]) -> None:
    assert parse_caption(text) == said


@pytest.mark.parametrize("seed", range(12))
def test_a_clip_moves_without_jumps(seed: int) -> None:
    portrait = portrait_from_seed(seed)
    slow, fast = render(portrait, frames=17, fps=8.0), render(portrait, frames=65, fps=32.0)
    assert np.array_equal(slow, fast[::4])  # the frame rate samples one and the same movement
    assert mean_step(slow) > 0.5
    steps = np.abs(np.diff(fast.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() < 5.0  # at 32 fps no cut: another person differs by more than 40
    assert mean_step(fast) < 0.5 * mean_step(slow)


def test_a_longer_clip_begins_with_the_shorter() -> None:
    portrait = portrait_from_seed(3)
    assert np.array_equal(render(portrait, frames=33)[:17], render(portrait, frames=17))


@pytest.mark.parametrize("seed", range(8))
def test_another_resolution_shows_the_same_person(seed: int) -> None:
    portrait = portrait_from_seed(seed)
    small = render(portrait, frames=3).astype(np.float32)
    large = render(portrait, frames=3, height=192, width=192).astype(np.float32)
    shrunk = large.reshape(3, 64, 3, 64, 3, 3).mean(axis=(2, 4))
    assert np.abs(small - shrunk).mean() < 3.0
    other = render(portrait_from_seed(seed + 100), frames=3).astype(np.float32)
    assert np.abs(small - other).mean() > 15.0


def test_a_wide_frame_keeps_the_figure_round() -> None:
    portrait = portrait_from_seed(5)
    wide, square = render(portrait, frames=1, height=64, width=112)[0], render(portrait, frames=1)[0]
    assert wide.shape == (64, 112, 3)
    assert np.abs(wide[:, 24:88].astype(float) - square).mean() < 3.0


def face_box(portrait: Portrait, v: float, rows: int, columns: int) -> tuple[slice, slice]:
    """A window of a 64 x 64 frame around the height ``v`` (head units) of a head that does not sway."""
    look = portrait.look
    x, y = round((look.x + 1) * 32), round((look.y + look.size * v + 1) * 32)
    return slice(y - rows, y + rows), slice(x - columns, x + columns)


@pytest.mark.parametrize("seed", range(8))
def test_every_action_shows(seed: int) -> None:
    """Each action leads in its own place, on a head that neither sways nor blinks."""
    portrait = replace(portrait_from_seed(seed), beard=False, glasses=False)
    motion = replace(portrait.motion, sway_amount=0.0, yaw_rest=0.0, pitch_rest=0.0, roll_rest=0.0)
    portrait = replace(portrait, motion=replace(motion, blink_time=200.0, blink_period=400.0))
    clips = {action: render(replace(portrait, action=action)) for action in ATTRIBUTES["action"]}
    mouth = face_box(portrait, portrait.look.mouth_height, 6, 7)
    eyes = face_box(portrait, -0.06, 3, 11)
    frame = {action: mean_step(clip) for action, clip in clips.items()}
    at_mouth = {action: mean_step(clip[:, mouth[0], mouth[1]]) for action, clip in clips.items()}
    at_eyes = {action: mean_step(clip[:, eyes[0], eyes[1]]) for action, clip in clips.items()}
    calm = ("talking", "smiling", "looking around")
    assert min(frame["nodding"], frame["shaking the head"]) > 1.5 * max(frame[action] for action in calm)
    assert at_mouth["talking"] > 2 * max(at_mouth["smiling"], at_mouth["looking around"])
    assert at_eyes["looking around"] > 1.5 * max(at_eyes["talking"], at_eyes["smiling"])
    smile, rest = (clips[action][:, mouth[0], mouth[1]].mean(axis=0) for action in ("smiling", "looking around"))
    assert np.abs(smile - rest).mean() > 3.0


def test_render_folder_resumes(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    render_folder(tmp_path, 2, 40, 5, 32, 32, 8.0)
    kept = tmp_path / "0000040.mp4"
    before = kept.stat().st_mtime_ns
    (tmp_path / "0000041.txt").unlink()
    render_folder(tmp_path, 3, 40, 5, 32, 32, 8.0, lambda done, count: calls.append((done, count)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{seed:07d}.{suffix}" for seed in (40, 41, 42) for suffix in ("mp4", "txt")
    ]
    assert kept.stat().st_mtime_ns == before
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert (tmp_path / "0000041.txt").read_text().strip() == caption(portrait_from_seed(41))
    clip = read_video(tmp_path / "0000042.mp4", 5, None, None, None)
    drawn = render(portrait_from_seed(42), 5, 32, 32)
    assert np.abs(clip.astype(float) - drawn).mean() < 6.0
