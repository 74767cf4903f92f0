"""Video files: what is written comes back; what is broken is told in one sentence."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from w2svd_core.data.portraits import portrait_from_seed, render
from w2svd_core.data.video import read_video, write_png, write_video
from w2svd_core.errors import UserError

Video = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def portrait() -> Video:
    return render(portrait_from_seed(1), frames=17, height=64, width=64)


@pytest.fixture(scope="module")
def counter() -> Video:
    """Twenty-four flat grey frames: the level tells the number of the frame."""
    levels = np.arange(24, dtype=np.uint8) * 8 + 30
    return np.broadcast_to(levels[:, None, None, None], (24, 32, 48, 3)).copy()


def numbers(video: Video) -> list[int]:
    return [round((float(frame.mean()) - 30) / 8) for frame in video]


def psnr(a: Video, b: Video) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def write_faststart(path: Path, video: Video, gop: int = 12) -> None:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], "yuv420p"
        stream.options = {"crf": "0", "g": str(gop)}
        for picture in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(("pixel_format", "least"), [("yuv420p", 29.0), ("yuv444p", 36.0)])
def test_round_trip(tmp_path: Path, portrait: Video, pixel_format: str, least: float) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, portrait, 8.0, pixel_format=pixel_format)
    back = read_video(path, None, None, None, None)
    assert back.shape == portrait.shape
    assert back.dtype == np.uint8
    assert psnr(back, portrait) > least
    assert [item.name for item in tmp_path.iterdir()] == ["clip.mp4"]


def test_crf_sets_the_size(tmp_path: Path, portrait: Video) -> None:
    for crf in (5, 35):
        write_video(tmp_path / f"{crf}.mp4", portrait, 8.0, crf=crf)
    assert (tmp_path / "5.mp4").stat().st_size > 2 * (tmp_path / "35.mp4").stat().st_size


@pytest.mark.parametrize(
    ("fps", "frames", "expected"),
    [
        (24.0, None, list(range(24))),
        (None, 5, [0, 1, 2, 3, 4]),
        (8.0, None, list(range(0, 24, 3))),
        (12.0, 6, [0, 2, 4, 6, 8, 10]),
        (48.0, 6, [0, 1, 1, 2, 2, 3]),
    ],
)
def test_frame_rates(
    tmp_path: Path, counter: Video, fps: float | None, frames: int | None, expected: list[int]
) -> None:
    write_video(tmp_path / "clip.mp4", counter, 24.0, crf=1)
    got = numbers(read_video(tmp_path / "clip.mp4", frames, None, None, fps))
    if fps == 48.0:  # a time between two frames may go to either
        assert all(abs(number - k / 2) <= 0.5 for k, number in enumerate(got))
        assert len(got) == 6
    else:
        assert got == expected


def test_a_fractional_rate_survives(tmp_path: Path, counter: Video) -> None:
    write_video(tmp_path / "clip.mp4", counter, 30000 / 1001, crf=1)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
    assert numbers(read_video(tmp_path / "clip.mp4", 4, None, None, 10.0)) == [0, 3, 6, 9]


def test_crop_and_resize(tmp_path: Path) -> None:
    video = np.zeros((2, 32, 96, 3), np.uint8)
    video[:, :, 32:64] = 200  # the middle square is grey, the sides are black
    write_video(tmp_path / "clip.mp4", video, 8.0, crf=1, pixel_format="yuv444p")
    square = read_video(tmp_path / "clip.mp4", 2, 16, 16, None)
    assert square.shape == (2, 16, 16, 3)
    assert np.abs(square.astype(int) - 200).max() <= 8
    assert read_video(tmp_path / "clip.mp4", 1, 16, None, None).shape == (1, 16, 48, 3)
    assert read_video(tmp_path / "clip.mp4", 1, None, 48, None).shape == (1, 16, 48, 3)
    large = read_video(tmp_path / "clip.mp4", 1, 64, 192, None)
    assert large.shape == (1, 64, 192, 3)
    assert abs(int(large[0, 32, 96, 0]) - 200) <= 8
    tall = read_video(tmp_path / "clip.mp4", 1, 32, 8, None)
    assert np.abs(tall.astype(int) - 200).max() <= 8


def test_too_short_says_what_it_has_and_needs(tmp_path: Path, counter: Video) -> None:
    write_video(tmp_path / "clip.mp4", counter, 24.0)
    with pytest.raises(UserError, match=r"clip\.mp4 is too short: it has 24 frames and 25 are needed"):
        read_video(tmp_path / "clip.mp4", 25, None, None, None)
    with pytest.raises(UserError, match=r"it has 8 frames at 8 fps and 17 are needed"):
        read_video(tmp_path / "clip.mp4", 17, None, None, 8.0)


def test_missing_and_broken_files(tmp_path: Path, portrait: Video) -> None:
    with pytest.raises(UserError, match="is not there"):
        read_video(tmp_path / "none.mp4", None, None, None, None)
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(UserError, match=r"text\.mp4 is broken or truncated"):
        read_video(tmp_path / "text.mp4", None, None, None, None)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UserError, match=r"empty\.mp4 is broken or truncated"):
        read_video(tmp_path / "empty.mp4", None, None, None, None)
    write_video(tmp_path / "whole.mp4", portrait, 8.0)
    (tmp_path / "half.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"half\.mp4 is broken or truncated"):
        read_video(tmp_path / "half.mp4", None, None, None, None)


@pytest.mark.parametrize("wanted", [None, 17])
def test_truncated_behind_its_index(tmp_path: Path, portrait: Video, wanted: int | None) -> None:
    write_faststart(tmp_path / "whole.mp4", portrait)
    data = (tmp_path / "whole.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    assert len(read_video(tmp_path / "whole.mp4", wanted, None, None, None)) == 17
    with pytest.raises(UserError, match=r"cut\.mp4 is .*truncated"):
        read_video(tmp_path / "cut.mp4", wanted, None, None, None)


def test_a_single_frame_that_is_cut_off_is_told(tmp_path: Path, portrait: Video) -> None:
    write_faststart(tmp_path / "whole.mp4", portrait)
    with av.open(str(tmp_path / "whole.mp4")) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.pos)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:last])
    with pytest.raises(UserError, match=r"cut\.mp4 is .*truncated"):
        read_video(tmp_path / "cut.mp4", None, None, None, None)


def test_an_edit_list_is_no_truncation(tmp_path: Path, portrait: Video) -> None:
    """A phone's trimming leaves all frames in the index and tells players to show some of them."""
    write_faststart(tmp_path / "whole.mp4", portrait, gop=5)
    data = bytearray((tmp_path / "whole.mp4").read_bytes())
    place = data.index(b"elst") + 12  # version, flags and count lie before the first duration
    told = int.from_bytes(data[place : place + 4], "big")
    data[place : place + 4] = (told // 2).to_bytes(4, "big")
    (tmp_path / "trimmed.mp4").write_bytes(data)
    assert 8 <= len(read_video(tmp_path / "trimmed.mp4", None, None, None, None)) < 17


def test_what_is_written_says_how_its_colours_were_converted(tmp_path: Path, portrait: Video) -> None:
    write_video(tmp_path / "clip.mp4", portrait, 8.0, loops=2)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 2 * len(portrait)
    assert (int(frames[0].colorspace), int(frames[0].color_range)) == (6, 1)  # BT.601, limited


def test_no_video_stream(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match=r"sound\.mp4 has no video stream"):
        read_video(path, None, None, None, None)


def test_what_cannot_be_written(tmp_path: Path, portrait: Video) -> None:
    with pytest.raises(UserError, match="63x64 has an odd side"):
        write_video(tmp_path / "odd.mp4", portrait[:, :, :63], 8.0)
    with pytest.raises(UserError, match=r"must end in one of \.mp4"):
        write_video(tmp_path / "clip.gif", portrait, 8.0)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "clip.mp4", portrait.astype(np.float32), 8.0)
    with pytest.raises(UserError, match=r"clip\.mp4"):
        write_video(tmp_path / "clip.mp4", portrait, 8.0, pixel_format="nonsense")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "file" / "clip.mp4", portrait, 8.0)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_odd_sizes_with_full_colour(tmp_path: Path, portrait: Video) -> None:
    write_video(tmp_path / "odd.mp4", portrait[:, :, :63], 8.0, pixel_format="yuv444p")
    assert read_video(tmp_path / "odd.mp4", None, None, None, None).shape == (17, 64, 63, 3)


def test_a_picture_survives_as_png(tmp_path: Path) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    write_png(tmp_path / "picture.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "picture.png")), picture)


def test_the_same_pictures_give_the_same_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 20, (5, 32, 32, 3))
    video = (np.linspace(0, 255, noise.size).reshape(noise.shape) + noise).clip(0, 255).astype(np.uint8)
    files = set()
    for index in range(12):
        write_video(tmp_path / f"{index}.mp4", video, 8.0)
        files.add((tmp_path / f"{index}.mp4").read_bytes())
    assert len(files) == 1
