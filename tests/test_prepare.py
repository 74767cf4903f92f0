"""The prepare door and what it stands on: real clips in, shards and report out; stopped, mended, gone on with."""

from __future__ import annotations

import csv
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from video_files import counting, write, write_sound

from w2svd_core import prepare as door
from w2svd_core.assembly import bundled_encoders
from w2svd_core.config import check_recipe
from w2svd_core.data import prepare as preparing
from w2svd_core.data.codec import Codec, PortraitCodec, to_signed
from w2svd_core.data.encoder_source import StartEncoder
from w2svd_core.data.latents import load_latents
from w2svd_core.data.portraits import render_folder
from w2svd_core.data.prepare import Stopped, prepare
from w2svd_core.data.prompts import HashedWords, PromptEncoder
from w2svd_core.data.shard_sets import PromptSet, ShardSet
from w2svd_core.data.video import read_video
from w2svd_core.data.wanted import prepared_set
from w2svd_core.errors import UserError, guarded
from w2svd_core.geometry import LatentGeometry
from w2svd_core.hashing import value_hash
from w2svd_core.settings import Data

CPU = torch.device("cpu")
ENCODERS = bundled_encoders()
BUNDLED = ENCODERS
GEOMETRY = ENCODERS.codec.geometry


def quiet(what: str, done: int, count: int) -> None:
    """Progress that nobody sees."""


class Start:
    """First frame, then grey, through the real codec; and a mean colour, for a field without time."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def encode(self, first: Tensor, frames: int, captions: Sequence[str]) -> Mapping[str, Tensor]:
        grey = first.new_zeros(*first.shape[:2], frames - 1, *first.shape[3:])
        return {
            "start": self.codec.encode(torch.cat([first, grey], dim=2)),
            "image": first.mean(dim=(2, 3, 4))[:, None],
        }

    def fingerprint(self) -> str:
        return value_hash(["start", self.codec.fingerprint()])


class Watched:
    """Encoders that are loaded one by one, as large ones are; it sees which are alive, and how often they load."""

    geometry: LatentGeometry = GEOMETRY
    captioned = False

    def __init__(self, with_start: bool = False) -> None:
        self.loaded: list[str] = []
        self.prompts: Any = lambda: None
        self.with_start = with_start

    def fingerprints(self) -> dict[str, str]:
        start = Start(ENCODERS.codec).fingerprint() if self.with_start else ""
        return {"codec": ENCODERS.codec.fingerprint(), "text": ENCODERS.prompts.fingerprint(), "start": start}

    def load_prompts(self) -> PromptEncoder:
        self.loaded.append("prompts")
        encoder = HashedWords()
        self.prompts = weakref.ref(encoder)
        return encoder

    def load_codec(self) -> Codec:
        assert self.prompts() is None, "the text encoder is still in memory"
        self.loaded.append("codec")
        codec = PortraitCodec()
        codec.load_state_dict(ENCODERS.codec.state_dict())  # type: ignore[attr-defined]
        return codec.eval().requires_grad_(False)

    def load_start(self, codec: Codec) -> StartEncoder | None:
        self.loaded.append("start")
        return Start(codec) if self.with_start else None


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of several shapes and lengths, and some that serve for nothing."""
    folder = tmp_path_factory.mktemp("mixed")
    write(folder / "a-square.mp4", counting(20, 64, 64))
    write(folder / "b-wide.mkv", counting(9, 36, 64), "ffv1", "bgr0")
    write(folder / "c-tall.mov", counting(12, 64, 36))
    write(folder / "d-small.mp4", counting(9, 16, 16))
    write(folder / "e-short.mp4", counting(3, 64, 64))
    (folder / "f-empty.mp4").touch()
    write_sound(folder / "g-sound.mp4")
    (folder / "h-images").mkdir()
    for number, picture in enumerate(counting(9, 40, 40)):
        Image.fromarray(picture).save(folder / "h-images" / f"{number}.png")
    for name in ("a-square", "b-wide", "c-tall", "d-small", "e-short", "f-empty", "g-sound", "h-images"):
        (folder / f"{name}.txt").write_text("talking, red hair" if name < "c" else f"smiling, {name}")
    return folder


@pytest.fixture
def settings(mixed: Path, tmp_path: Path) -> Data:
    """A copy of them, to be cut into at most 3 shapes of 32 x 32 px."""
    shutil.copytree(mixed, tmp_path / "clips")
    return Data(
        folder=str(tmp_path / "clips"), cache=str(tmp_path / "cache"), frames=9, min_frames=5, height=32, width=32,
        fps=8.0, buckets=3, workers=2,
    )  # fmt: skip


def opened(settings: Data, source: Any = BUNDLED) -> ShardSet:
    data = prepared_set(settings, source, GEOMETRY, quiet)
    assert isinstance(data, ShardSet)
    return data


def everything(data: ShardSet) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Every row by itself."""
    rows = [data.batch([number], CPU) for number in range(len(data))]
    return [(latents, dict(condition.fields)) for latents, condition in rows]


def same(a: list[tuple[Tensor, dict[str, Tensor]]], b: list[tuple[Tensor, dict[str, Tensor]]]) -> bool:
    def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
        return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    return len(a) == len(b) and all(torch.equal(x[0], y[0]) and equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


def test_clips_become_what_the_codec_makes_of_them(settings: Data) -> None:
    source = Watched(with_start=True)
    prepared = prepare(settings, source, quiet)
    assert source.loaded == ["prompts", "codec", "start"]
    assert {prepared.want.clips[n].name for n in prepared.dropped} == {"e-short.mp4", "f-empty.mp4", "g-sound.mp4"}
    data = opened(settings, source)
    cuts = [  # by bucket, the fullest first
        ("a-square.mp4", 9, 32, 32), ("d-small.mp4", 9, 32, 32), ("h-images", 9, 32, 32),
        ("b-wide.mkv", 9, 24, 40), ("c-tall.mov", 9, 40, 24),
    ]  # fmt: skip
    assert len(data) == 5 and data.shape([0, 1, 2]) == (16, 3, 8, 8)
    for number, (name, frames, height, width) in enumerate(cuts):
        path = Path(settings.folder) / name
        video = to_signed(read_video(path, frames, height, width, 8.0)[None])
        latents, condition = data.batch([number], CPU)
        assert torch.equal(latents, ENCODERS.codec.encode(video))
        caption = path.with_suffix("").with_suffix(".txt").read_text()
        assert torch.equal(condition.fields["text"], ENCODERS.prompts.encode([caption]).fields["text"])
        for field, value in Start(ENCODERS.codec).encode(video[:, :, :1], frames, [caption]).items():
            assert torch.equal(condition.fields[field], value)
    assert torch.equal(data.null.fields["text"], ENCODERS.prompts.encode([""]).fields["text"])
    assert data.captions[0] == "talking, red hair"


def test_one_shape_gives_the_latents_of_the_plain_cache(tmp_path: Path) -> None:
    render_folder(tmp_path / "clips", 5, 0, 5, 32, 32, 8.0)
    settings = Data(folder=str(tmp_path / "clips"), cache=str(tmp_path), frames=5, height=32, width=32, fps=8.0)
    plain = load_latents(settings, ENCODERS, quiet)
    prepare(settings, BUNDLED, quiet)
    data = opened(settings)
    rows = data.rows(3, 4, seed=1)
    assert rows == plain.rows(3, 4, seed=1) and data.captions == plain.captions
    (ours, condition), (theirs, wanted) = data.batch(rows, CPU), plain.batch(rows, CPU)
    assert torch.equal(ours, theirs) and torch.equal(condition.fields["text"], wanted.fields["text"])


def test_report_table_and_sheet(settings: Data, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {f"data.{key}": value for key, value in settings.model_dump().items()} | {"evaluate.clips": 0}
    assert door.carry_out(check_recipe(changes, "in a test"), BUNDLED) == 0
    out = capsys.readouterr().out
    assert "5 of 8 clips are ready, 3 were dropped. Look at " in out
    report = Path(out.rsplit("Look at ", 1)[1].strip())
    text = report.read_text()
    assert "| 9 x 32 x 32 | 3 | 1 | 1 |" in text  # a-square goes on, d-small is enlarged
    assert "| 9 x 24 x 40 | 1 | 0 | 0 |" in text and "| 9 x 40 x 24 | 1 | 1 | 0 |" in text
    for words in ("e-short.mp4 is too short: it has 3 frames at 8 fps and 5 are needed", "f-empty.mp4 is broken",
                  "g-sound.mp4 has no video stream"):  # fmt: skip
        assert words in text
    table = list(csv.DictReader((report.parent / "clips.csv").open()))
    assert [row["used"] for row in table] == ["yes"] * 4 + ["no"] * 3 + ["yes"]
    assert [row["frames"] for row in table][:2] == ["9", "9"] and table[1]["own_width"] == "64"
    sheet = np.asarray(Image.open(report.parent / "contact_sheet.png"))
    assert sheet.shape[0] > 5 * 120 and (sheet < 200).any()


def test_it_goes_on_where_it_was_stopped(settings: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(replaced(settings, "whole"), BUNDLED, quiet)
    whole = opened(replaced(settings, "whole"))

    def stop(what: str, done: int, count: int) -> None:
        if what == "encoding clips" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Stopped):
        prepare(settings, Watched(), stop)
    shutil.rmtree(settings.cache)
    assert guarded(lambda: prepare(settings, Watched(), stop).new) == 130  # doors that prepare on their way say so, too
    with pytest.raises(UserError, match=r"are not prepared for this recipe yet; run python -m w2svd_core\.prepare"):
        opened(settings)
    source, told = Watched(), []
    prepared = prepare(settings, source, lambda what, done, count: told.append((what, done, count)))
    assert source.loaded == ["codec", "start"] and prepared.new == 3  # the prompts were done, and two clips
    assert told[-1] == ("encoding clips", 6, 6)  # the three that can't be used are tried again
    assert same(everything(opened(settings)), everything(whole))
    assert opened(settings).fingerprint() == whole.fingerprint()  # the shards differ, what they hold does not


def replaced(settings: Data, cache: str) -> Data:
    return settings.model_copy(update={"cache": str(Path(settings.cache).parent / cache)})


def test_only_what_is_new_is_encoded(settings: Data) -> None:
    folder = Path(settings.folder)
    for name in ("e-short", "f-empty", "g-sound"):
        (folder / f"{name}.mp4").unlink()
        (folder / f"{name}.txt").unlink()
    prepare(settings, BUNDLED, quiet)
    first = opened(settings).fingerprint()
    idle = Watched()
    assert prepare(settings, idle, quiet).new == 0 and idle.loaded == []
    write(folder / "z-new.mp4", counting(9, 64, 64))
    (folder / "z-new.txt").write_text("nodding")
    assert prepare(settings, BUNDLED, quiet).new == 1
    assert len(opened(settings)) == 6 and opened(settings).fingerprint() != first
    (folder / "z-new.txt").write_text("shaking the head")
    source = Watched()
    prepare(settings, source, quiet)
    assert source.loaded == ["prompts"]  # another caption is no other clip
    (folder / "z-new.mp4").unlink()
    (folder / "z-new.txt").unlink()
    prepare(settings, BUNDLED, quiet)
    assert len(opened(settings)) == 5 and opened(settings).fingerprint() == first


@pytest.mark.parametrize(
    ("change", "words"),
    [({"height": 40}, "another sizes or frame rate than"), ({"fps": 4.0}, "another sizes or frame rate than")],
)
def test_another_size_is_never_taken_for_this(settings: Data, change: dict[str, Any], words: str) -> None:
    prepare(settings, BUNDLED, quiet)
    with pytest.raises(UserError, match=f"are prepared in .*{words} this recipe has"):
        opened(settings.model_copy(update=change))


def test_another_model_is_never_taken_for_this(settings: Data) -> None:
    prepare(settings, BUNDLED, quiet)
    other = PortraitCodec()
    other.basis += 1
    with pytest.raises(UserError, match="with another VAE than this recipe has"):
        opened(settings, replace(BUNDLED, codec=other))
    with pytest.raises(UserError, match="with another image encoder than"):
        opened(settings, replace(BUNDLED, start=Start(ENCODERS.codec)))
    assert len(opened(settings)) == 5


def test_a_broken_clip_does_not_stop_the_others_but_nothing_is_no_set(settings: Data) -> None:
    folder = Path(settings.folder)
    for path in list(folder.iterdir()):
        if path.suffix == "":
            shutil.rmtree(path)
        elif path.stem not in ("f-empty", "g-sound"):
            path.unlink()
    with pytest.raises(UserError, match=r"none of the 2 clips can be used; the first: .*f-empty\.mp4 is broken"):
        prepare(settings, BUNDLED, quiet)


def test_latents_that_are_not_finite_are_dropped(settings: Data) -> None:
    codec = PortraitCodec()
    codec.basis.fill_(float("nan"))
    with pytest.raises(UserError, match=r"a-square\.mp4 has latents that are not finite numbers"):
        prepare(settings, replace(BUNDLED, codec=codec), quiet)


def test_shards_are_bounded(settings: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "CLIP_ROWS", 2)
    prepare(settings, BUNDLED, quiet)
    whole = everything(opened(settings))
    by_bytes = replaced(settings, "bytes")
    monkeypatch.setattr(preparing, "CLIP_BYTES", 1)
    prepare(by_bytes, BUNDLED, quiet)
    assert len(list(Path(settings.cache).glob("clips-*/*"))) == 4  # 2 + 1, 1, 1
    assert len(list(Path(by_bytes.cache).glob("clips-*/*"))) == 5
    assert same(everything(opened(by_bytes)), whole)


# ---- prompts alone


def test_prompts_alone(tmp_path: Path) -> None:
    lines = ["talking, red hair", "smiling", "talking, red hair"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    settings = Data(prompts=str(tmp_path / "prompts.txt"), cache=str(tmp_path / "cache"), frames=9)
    source = Watched()
    prepared = prepare(settings, source, quiet)
    assert source.loaded == ["prompts"] and prepared.new == 2
    data = prepared_set(settings, source, GEOMETRY, quiet)
    assert isinstance(data, PromptSet) and len(data) == 3 and data.shape([0]) == (16, 3, 8, 8)
    latents, condition = data.batch([2, 1], CPU)
    assert latents is None
    assert torch.equal(condition.fields["text"], ENCODERS.prompts.encode([lines[2], lines[1]]).fields["text"])
    with pytest.raises(UserError, match="this model needs the first frame of each clip"):
        prepare(settings, Watched(with_start=True), quiet)
    with pytest.raises(UserError, match=r"data\.frames is 8, but this model takes"):
        prepare(settings.model_copy(update={"frames": 8}), source, quiet)


# ---- the door


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = guarded(lambda: door.main(arguments))
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def test_the_door(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    render_folder(tmp_path / "clips", 2, 0, 5, 32, 32, 8.0)
    size = ["--data.frames", "5", "--data.height", "32", "--data.width", "32", "--data.fps", "8"]
    place = ["--data.folder", str(tmp_path / "clips"), "--data.cache", str(tmp_path / "cache")]
    code, out, _ = call("portraits", *size, *place)
    assert code == 0 and "2 of 2 clips are ready, 0 were dropped" in out
    (tmp_path / "p.txt").write_text("talking")
    code, out, _ = call("portraits", *size, *place, "--data.prompts", str(tmp_path / "p.txt"), "--evaluate.clips", "0")
    assert code == 0 and "1 prompts are ready" in out
    code, _, err = call("portraits", *size, *place, "--data.folder", str(tmp_path / "none"))
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "read_excerpt", stop)
    code, _, err = call("portraits", *size, *place, "--data.min_frames", "1")
    assert code == 130 and "stopped, what was encoded is kept; go on with the same command" in err
