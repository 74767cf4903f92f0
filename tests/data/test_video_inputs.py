"""Files as cameras, editors and the web make them: read right, or refused in one sentence."""

from __future__ import annotations

import struct
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import counting, halves, numbers, write, write_sound

from w2svd_core.data.clips import list_clips, read_prompts
from w2svd_core.data.video import read_excerpt, read_video
from w2svd_core.errors import UserError

RED, BLUE = (200, 60, 40), (40, 60, 200)


def near(picture: np.ndarray, colour: tuple[int, ...], within: int = 12) -> bool:
    return bool(np.abs(picture.astype(int) - colour).max() <= within)


def refused(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_video(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("clip.mp4", "libx264", "yuv420p"),
        ("clip.mov", "libx264", "yuv444p"),
        ("clip.webm", "libvpx-vp9", "yuv420p"),
        ("clip.gif", "gif", "bgr8"),
        ("clip.mkv", "ffv1", "bgr0"),
        ("clip.avi", "mpeg4", "yuv420p"),
        ("ten.mp4", "libx264", "yuv420p10le"),
        ("twelve.mov", "prores_ks", "yuv444p10le"),
    ],
)
def test_containers_and_depths(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    path = write(tmp_path / name, counting(8), codec, pixels)
    video = read_video(path, fps=4.0)
    assert video.shape == (4, 32, 48, 3) and video.dtype == np.uint8
    assert numbers(video) == [0, 2, 4, 6]


def test_ten_bits_keep_their_levels(tmp_path: Path) -> None:
    video = halves(RED, BLUE)
    found = read_video(write(tmp_path / "ten.mov", video, "prores_ks", "yuv444p10le"))
    assert np.abs(found.astype(int) - video)[:, :, 2:20].max() <= 3


def test_high_dynamic_range_is_refused(tmp_path: Path) -> None:
    for name, transfer, curve in (("pq.mp4", 16, "PQ"), ("hlg.mp4", 18, "HLG")):
        path = write(tmp_path / name, counting(3), "libx264", "yuv420p10le", transfer=transfer)
        refused(path, rf"is an HDR video \({curve}\).*convert it to SDR")


def test_odd_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.mkv", counting(4, 31, 47), "ffv1", "bgr0")
    assert read_video(path).shape == (4, 31, 47, 3)
    assert numbers(read_video(path, 3, 16, 24)) == [0, 1, 2]
    thin = write(tmp_path / "thin.mkv", counting(1, 1, 400), "ffv1", "bgr0")
    assert read_video(thin, 1, 64, 16).shape == (1, 64, 16, 3)


def test_alpha_is_drawn_over_black(tmp_path: Path) -> None:
    video = halves((*RED, 255), (*BLUE, 0), height=32, width=64)
    for name, codec, pixels in (("a.mov", "qtrle", "argb"), ("a.webm", "libvpx-vp9", "yuva420p")):
        found = read_video(write(tmp_path / name, video, codec, pixels))
        assert near(found[:, :, 2:28], RED) and near(found[:, :, 36:], (0, 0, 0))
    video[..., 3] = 128
    found = read_video(write(tmp_path / "half.mov", video, "prores_ks", "yuva444p10le"))
    assert near(found[:, :, 2:28], (100, 30, 20)) and near(found[:, :, 36:], (20, 30, 100))
    frames = [Image.fromarray(picture, "RGBA") for picture in halves((*RED, 255), (*BLUE, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2, duration=120)
    found = read_video(tmp_path / "a.gif")
    assert near(found[0, :, 2:22], RED) and near(found[0, :, 26:], (0, 0, 0))


def test_a_rotation_tag_is_applied_as_a_phone_writes_it(tmp_path: Path) -> None:
    video = halves(RED, BLUE)  # a phone held upright: the sensor's left side is the picture's top
    path = write(tmp_path / "phone.mp4", video)
    data = bytearray(path.read_bytes())
    track = data.index(b"tkhd")
    matrix = track + 4 + 4 + 5 * 4 + 8 + 8  # version and flags, five numbers, reserved, layer to reserved
    one = 1 << 16
    assert struct.unpack(">9i", data[matrix : matrix + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = (0, one, 0, -one, 0, 0, 32 * one, 0, 1 << 30)  # x' = 32 - y, y' = x: a quarter clockwise
    data[matrix : matrix + 36] = struct.pack(">9i", *turned)
    path.write_bytes(data)
    found = read_video(path)
    assert found.shape == (3, 48, 32, 3)
    assert near(found[:, 2:22], RED) and near(found[:, 26:], BLUE)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_display_rotations(tmp_path: Path, degrees: int) -> None:
    found = read_video(write(tmp_path / "turned.mov", halves(RED, BLUE), rotation=degrees))
    upright = np.rot90(halves(RED, BLUE), degrees // 90, axes=(1, 2))
    assert found.shape == upright.shape
    assert np.median(np.abs(found.astype(int) - upright)) <= 4


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = write(tmp_path / "wide.mp4", halves(RED, BLUE), aspect=Fraction(4, 3))
    found = read_video(path)
    assert found.shape == (3, 32, 64, 3)
    assert near(found[:, :, 4:28], RED) and near(found[:, :, 36:], BLUE)


@pytest.mark.parametrize(("name", "codec"), [("vfr.mp4", "libx264"), ("vfr.webm", "libvpx-vp9"), ("vfr.mkv", "ffv1")])
def test_a_variable_frame_rate_is_read_by_times(tmp_path: Path, name: str, codec: str) -> None:
    times = [0, 0.1, 0.2, 0.3, 1.3, 2.3, 2.4, 2.5]
    path = write(tmp_path / name, counting(8), codec, "yuv420p", times=times, rate=10)
    found = numbers(read_video(path, fps=10.0))
    shown = [max(i for i, t in enumerate(times) if t <= k / 10 + 1e-6) for k in range(26)]
    assert found[:26] == shown  # a frame is shown until the next one is due
    assert len(found) in (26, 27)


def test_a_clip_that_does_not_begin_at_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "late.mkv", counting(5), "ffv1", "bgr0", times=[7 + k / 8 for k in range(5)])
    assert numbers(read_video(path, 5, fps=8.0)) == [0, 1, 2, 3, 4]


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mov").touch()
    refused(tmp_path / "empty.mov", "is broken or truncated")
    (tmp_path / "empty.gif").touch()
    refused(tmp_path / "empty.gif", "is broken or truncated")
    refused(write_sound(tmp_path / "sound.mp4"), "has no video stream")
    (tmp_path / "noise.webm").write_bytes(bytes(range(256)) * 20)
    refused(tmp_path / "noise.webm", "is broken or truncated")


def test_an_excerpt_says_whether_the_clip_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", counting(8))
    asked: list[tuple[int, int]] = []

    def size(height: int, width: int) -> tuple[int, int]:
        asked.append((height, width))
        return 16, 16

    part = read_excerpt(path, 5, 8.0, size)
    assert numbers(part.video) == [0, 1, 2, 3, 4] and part.goes_on and part.video.shape[1:3] == (16, 16)
    whole = read_excerpt(path, 8, 8.0, size)
    assert numbers(whole.video) == list(range(8)) and not whole.goes_on
    assert len(read_excerpt(path, 100, 4.0, size).video) == 4
    assert asked == [(32, 48)] * 3 and (part.height, part.width) == (32, 48)


# ---- folders of images


def images(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(counting(count)):
        Image.fromarray(picture).save(folder / f"frame{number}.png")
    return folder


def test_a_folder_of_images_is_a_clip_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    folder = images(tmp_path / "clips" / "walk.v2")
    (folder / ".thumbs.png").write_bytes(b"hidden")
    assert numbers(read_video(folder)) == list(range(12))
    assert numbers(read_video(folder, 3, 16, 24, fps=99.0)) == [0, 1, 2]
    (tmp_path / "clips" / "walk.v2.txt").write_text("walking")
    (tmp_path / "clips" / "more").mkdir()
    write(tmp_path / "clips" / "more" / "a.gif", counting(2), "gif", "bgr8")
    (tmp_path / "clips" / "more" / "a.txt").write_text("counting")
    Image.fromarray(counting(1)[0]).save(tmp_path / "clips" / "more" / "cover.jpg")  # beside a clip, no frame
    assert [(c.name, c.caption) for c in list_clips(tmp_path / "clips")] == [
        ("more/a.gif", "counting"),
        ("walk.v2", "walking"),
    ]


def test_a_folder_and_a_file_of_one_name(tmp_path: Path) -> None:
    images(tmp_path / "a", 1)
    write(tmp_path / "a.mp4", counting(1))
    (tmp_path / "a.txt").write_text("which of them")
    with pytest.raises(UserError, match=r"a and a\.mp4 would share the caption a\.txt; rename one of the clips"):
        list_clips(tmp_path)


def test_kinds_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    Image.fromarray(halves((*RED, 255), (*BLUE, 0), 1)[0], "RGBA").save(folder / "1.png")
    Image.fromarray(np.full((32, 48), 200 << 8, np.uint16)).save(folder / "2.png")
    Image.fromarray(counting(1)[0, ..., 0], "L").save(folder / "3.webp", lossless=True)
    turned = Image.fromarray(np.rot90(halves(RED, BLUE, 1)[0]).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter clockwise
    turned.save(folder / "4.jpg", exif=exif, quality=95)
    found = read_video(folder)
    assert near(found[0, :, :24], RED, 0) and near(found[0, :, 24:], (0, 0, 0), 0)
    assert near(found[1], (200, 200, 200), 0) and near(found[2], (30, 30, 30), 1)
    assert near(found[3, :, 2:20], RED, 20) and near(found[3, :, 28:], BLUE, 20)


def test_broken_folders_of_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "clip", 2)
    (folder / "frame2.png").touch()
    with pytest.raises(UserError, match=r"frame2\.png is not a readable image"):
        read_video(folder)
    Image.fromarray(counting(1, 30, 48)[0]).save(folder / "frame2.png")
    with pytest.raises(UserError, match=r"frame2\.png is 48x30 px, the frames before it 48x32"):
        read_video(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none holds no images"):
        read_video(tmp_path / "none")


# ---- texts


@pytest.mark.parametrize(
    ("encoding", "words"),
    [("utf-16", "but UTF-16;"), ("utf-16-le", "but UTF-16 or binary"), ("utf-32", "but UTF-32"),
     ("cp1252", "but an older encoding"), ("latin-1", "but an older encoding")],
)  # fmt: skip
def test_captions_in_another_encoding(tmp_path: Path, encoding: str, words: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_bytes("ein Mädchen lächelt".encode(encoding))
    with pytest.raises(UserError, match=rf"a\.txt is not UTF-8 text {words}.*save it as UTF-8"):
        list_clips(tmp_path)
    (tmp_path / "a.txt").write_bytes("ein Mädchen\r\nlächelt".encode("utf-8-sig"))
    assert [clip.caption for clip in list_clips(tmp_path)] == ["ein Mädchen lächelt"]


def test_prompts_stand_in_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone  smile\r\n\r\n two\n".encode())
    assert read_prompts(path) == ["one smile", "two"]
    path.write_text(" \n")
    with pytest.raises(UserError, match=r"prompts\.txt holds no prompts"):
        read_prompts(path)
    with pytest.raises(UserError, match=r"none\.txt is not there; check data\.prompts"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.slow
def test_a_hundred_thousand_clips_are_listed_in_seconds(tmp_path: Path) -> None:
    for part in range(10):
        (tmp_path / f"{part}").mkdir()
        for number in range(10_000):
            (tmp_path / f"{part}" / f"{number:05d}.mp4").touch()
            (tmp_path / f"{part}" / f"{number:05d}.txt").write_text("talking")
    start = time.perf_counter()
    clips = list_clips(tmp_path)
    assert time.perf_counter() - start < 20
    assert len(clips) == 100_000 and clips[-1].name == "9/09999.mp4"
