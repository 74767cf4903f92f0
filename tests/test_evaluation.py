"""What a table is measured with: held-out portraits, or the user's own clips."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from w2svd_core.assembly import bundled_encoders
from w2svd_core.config import check_recipe
from w2svd_core.data.encoder_source import LoadedEncoders
from w2svd_core.data.portraits import caption, portrait_from_seed, render, render_folder
from w2svd_core.data.video import read_video
from w2svd_core.errors import UserError
from w2svd_core.evaluate import best_euler
from w2svd_core.evaluation import Row, check_own_clips, codec_row, data_row, held_out
from w2svd_core.flow import sigma_list
from w2svd_core.generation import Way
from w2svd_core.settings import Recipe

FIRST = 1_000_000
KNOWN = {"motion", "frozen_share", "flicker", "saturation", "sharpness"}  # what needs no portrait network
SIZE: dict[str, object] = {"data.frames": 5, "data.height": 32, "data.width": 32}


@pytest.fixture(scope="module")
def encoders() -> LoadedEncoders:
    return bundled_encoders()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of 9 frames, 48 x 64 px at 16 fps, the last in a subfolder; the captions are the user's own."""
    path = tmp_path_factory.mktemp("clips")
    render_folder(path, 3, 7, 9, 48, 64, 16.0)
    (path / "more").mkdir()
    for suffix in ("mp4", "txt"):
        (path / f"0000009.{suffix}").rename(path / "more" / f"x.{suffix}")
    for name, words in (("0000007", "a cat"), ("0000008", "a dog"), ("more/x", "a horse")):
        (path / f"{name}.txt").write_text(words)
    return path


def recipe(settings: dict[str, object]) -> Recipe:
    return check_recipe({**SIZE, "evaluate.clips": 50, **settings}, "in a test")


class Told:
    """What the progress was told."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, int]] = {}

    def __call__(self, what: str, done: int, count: int) -> None:
        self.last[what] = (done, count)


def test_own_clips_are_the_test(folder: Path, encoders: LoadedEncoders) -> None:
    told = Told()
    test = held_out(recipe({"data.folder": str(folder)}), encoders, told)
    assert told.last == {"reading your clips": (3, 3)}
    paths = [folder / "0000007.mp4", folder / "0000008.mp4", folder / "more" / "x.mp4"]
    assert np.array_equal(test.data, np.stack([read_video(path, 5, 32, 32, 8.0) for path in paths]))
    assert test.data_captions == ("a cat", "a dog", "a horse") and test.reference is None
    pairs = ["a cat", "a cat", "a dog", "a dog", "a horse", "a horse"]
    assert test.captions == tuple((pairs * 9)[:50])  # each twice in a row, and so on until there are enough
    assert test.seeds == tuple(range(FIRST, FIRST + 50))
    expected = encoders.prompts.encode(pairs).fields["text"]
    assert torch.equal(test.asked.condition(range(8)).fields["text"][:6], expected)
    assert torch.equal(test.asked.null.fields["text"], encoders.prompts.encode([""]).fields["text"])
    assert test.asked.shape == encoders.codec.geometry.latent_shape(5, 32, 32)


def test_rows_of_own_clips(folder: Path, encoders: LoadedEncoders, tmp_path: Path) -> None:
    mine = recipe({"data.folder": str(folder)})
    test = held_out(mine, encoders, Told())
    rows = [data_row(test), codec_row(mine, test, tmp_path)]
    for row in rows:
        assert set(row.values) == KNOWN and row.clips == 3 and row.steps is None
        assert row.captions == ("a cat", "a dog", "a horse") and row.shown.shape == (3, 5, 32, 32, 3)
    assert np.array_equal(rows[0].shown, test.data) and not np.array_equal(rows[1].shown, test.data)
    assert list(tmp_path.iterdir()) == []


def test_no_more_own_clips_than_the_table_has(tmp_path: Path, encoders: LoadedEncoders) -> None:
    render_folder(tmp_path, 52, 0, 5, 32, 32, 8.0)
    test = held_out(recipe({"data.folder": str(tmp_path)}), encoders, Told())
    assert len(test.data) == len(test.data_captions) == 50 and len(test.captions) == 50
    assert test.captions == tuple(test.data_captions[i // 2] for i in range(50))


def test_of_many_own_clips_some_from_all_over_the_folder_are_taken(tmp_path: Path, encoders: LoadedEncoders) -> None:
    """A folder may be sorted by subject: data and models must not be measured on different ones."""
    render_folder(tmp_path, 120, 0, 5, 32, 32, 8.0)
    names = [path.stem for path in sorted(tmp_path.glob("*.mp4"))]
    for name in names:
        (tmp_path / f"{name}.txt").write_text(str(int(name)))
    test = held_out(recipe({"data.folder": str(tmp_path)}), encoders, Told())
    data, asked = ([int(one) for one in found] for found in (test.data_captions, test.captions[::2]))
    assert len(set(data)) == 50 and max(data) >= 115 and np.mean(data) == pytest.approx(59, abs=2)
    assert len(set(asked)) == 25 and max(asked) >= 112 and np.mean(asked) == pytest.approx(59, abs=3)


def test_clips_too_short_to_be_measured_are_told_before_the_training(folder: Path) -> None:
    check_own_clips(recipe({"data.folder": str(folder)}))
    check_own_clips(recipe({"data.folder": "/nowhere", "evaluate.clips": 0}))
    with pytest.raises(UserError, match=r"evaluate\.clips has nothing to measure .*too short.* set it to 0"):
        check_own_clips(recipe({"data.folder": str(folder), "data.frames": 9}))


def test_own_clips_that_do_not_serve(folder: Path, encoders: LoadedEncoders, tmp_path: Path) -> None:
    for settings, words in (
        ({"data.folder": str(folder), "data.frames": 9}, r"0000007\.mp4 is too short: it has 5 frames at 8 fps"),
        ({"data.folder": str(tmp_path)}, "holds no clips"),
        ({"data.folder": str(folder), "evaluate.clips": 0}, "evaluate.clips is 0, but the table needs an even number"),
    ):
        with pytest.raises(UserError, match=words):
            held_out(recipe(settings), encoders, Told())


def test_a_broken_clip_is_left_out(folder: Path, encoders: LoadedEncoders, tmp_path: Path) -> None:
    """As a preparation leaves it out, so that a long training does not end without its table."""
    shutil.copytree(folder, tmp_path / "clips")
    (tmp_path / "clips" / "0000000.mp4").write_bytes(b"no video")
    (tmp_path / "clips" / "0000000.txt").write_text("nothing")
    test = held_out(recipe({"data.folder": str(tmp_path / "clips")}), encoders, Told())
    assert test.data_captions == ("a cat", "a dog", "a horse") and len(test.data) == 3


def test_portraits_are_held_out(encoders: LoadedEncoders) -> None:
    told = Told()
    portraits = recipe({})
    test = held_out(portraits, encoders, told)
    assert told.last == {"drawing held-out portraits": (50, 50), "drawing the reference": (50, 50)}
    own = [caption(portrait_from_seed(FIRST + i)) for i in range(50)]
    assert test.data_captions == tuple(own) and test.seeds == tuple(range(FIRST, FIRST + 50))
    assert test.captions == tuple(own[i // 2] for i in range(50))
    assert np.array_equal(test.data[3], render(portrait_from_seed(FIRST + 3), 5, 32, 32, 8.0))
    row = data_row(test)
    assert test.reference is not None and test.reference.video.count == 50
    assert set(row.values) == KNOWN | {"frechet_video", "frechet_frame", "adherence"}
    assert row.clips == 50 and row.captions == tuple(own[:6]) and len(row.shown) == 6


@pytest.mark.parametrize(("aim", "tried"), [(2.0, 9), (3.4, 10), (6.5, 12), (99.0, 12)])
def test_the_search_for_the_best_euler_goes_on_at_its_edge(aim: float, tried: int) -> None:
    """With a distance that is least at shift 3 and some guidance."""

    def row(name: str, _loaded: Any, way: Way, _recipe: Any) -> Row:
        distance = abs(way.guidance_scale - aim) + (way.sigmas != sigma_list(4, 3.0))
        return Row(name, 4, True, {"frechet_video": distance}, 50, (), np.zeros((0, 1, 1, 1, 3), np.uint8))

    way, searched = Way("teacher", sigma_list(4, 5.0), "euler"), list[dict[str, Any]]()
    best = best_euler("Euler", cast(Any, SimpleNamespace(row=row)), cast(Any, None), way, Recipe(), searched)
    nearest = min((1.5, 2.5, 3.5, 5.0, 7.0, 10.0), key=lambda scale: abs(scale - aim))
    assert best.name == f"Euler (best of {tried}: shift 3, guidance {nearest:g})" and len(searched) == tried
    assert best.values["frechet_video"] == min(one["frechet_video"] for one in searched)
