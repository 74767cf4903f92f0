"""Folders of clips: both places for captions, and every way to get them wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from w2svd_core.data.clips import Clip, list_clips
from w2svd_core.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips without captions; the listing doesn't open them."""
    for name in ("b.mp4", "a.mov"):
        (tmp_path / name).touch()
    return tmp_path


def sidecars(folder: Path) -> None:
    (folder / "a.txt").write_text("first\n", encoding="utf-8")
    (folder / "b.txt").write_text("  second,\nin two lines ", encoding="utf-8")


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "metadata.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


A = {"file_name": "a.mov", "caption": "first"}
B = {"file_name": "b.mp4", "text": "second"}


def test_sidecars(folder: Path) -> None:
    sidecars(folder)
    (folder / ".hidden.mp4").touch()
    assert list_clips(folder) == [
        Clip(folder / "a.mov", "first", "a.mov"),
        Clip(folder / "b.mp4", "second, in two lines", "b.mp4"),
    ]


def test_jsonl(folder: Path) -> None:
    jsonl(folder, B, "", A)
    assert [(clip.name, clip.caption) for clip in list_clips(folder)] == [("a.mov", "first"), ("b.mp4", "second")]


def test_csv(folder: Path) -> None:
    (folder / "metadata.csv").write_text('\ufefffile_name,text\nb.mp4,"second, too"\na.mov,first\n', encoding="utf-8")
    assert [clip.caption for clip in list_clips(folder)] == ["first", "second, too"]


def test_csv_keeps_lines_inside_quotes_apart_from_rows(folder: Path) -> None:
    (folder / "metadata.csv").write_text('file_name,caption\na.mov,"two\nlines"\nb.mp4,x\n')
    assert [clip.caption for clip in list_clips(folder)] == ["two lines", "x"]


def test_clips_in_subfolders(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "c.mp4").touch()
    jsonl(folder, A, B, {"file_name": "more/c.mp4", "caption": "third"})
    assert [clip.name for clip in list_clips(folder)] == ["a.mov", "b.mp4", "more/c.mp4"]


def test_sidecars_in_subfolders(folder: Path) -> None:
    sidecars(folder)
    for place in ("more", "more/deep", ".hidden"):
        (folder / place).mkdir()
        (folder / place / "a.mp4").touch()
        (folder / place / "a.txt").write_text(f"in {place}")
    (folder / ".hidden" / "b.txt").write_text("without a clip")
    found = {clip.name: clip.caption for clip in list_clips(folder)}
    expected = {"a.mov": "first", "b.mp4": "second, in two lines", "more/a.mp4": "in more"}
    assert found == expected | {"more/deep/a.mp4": "in more/deep"}
    (folder / "more" / "deep" / "a.txt").unlink()
    fails(folder, r"deep/a\.mp4 has no caption; write one to a\.txt")
    (folder / "more" / "b.txt").write_text("its clip is a folder higher")
    fails(folder, r"more/b\.txt is a caption without a clip")


def test_two_clips_of_one_caption(folder: Path) -> None:
    sidecars(folder)
    (folder / "a.mp4").touch()
    fails(folder, r"a\.mov and a\.mp4 would share the caption a\.txt; rename one of the clips")
    jsonl(folder, A, B, {"file_name": "a.mp4", "caption": "third"})
    for text in folder.glob("*.txt"):
        text.unlink()
    assert len(list_clips(folder)) == 3  # a metadata file tells them apart


def fails(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        list_clips(folder)
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_clips(tmp_path: Path) -> None:
    fails(tmp_path / "none", "is not a folder")
    fails(tmp_path, "holds no clips")
    jsonl(tmp_path)
    fails(tmp_path, "holds no clips")


def test_clip_without_caption(folder: Path) -> None:
    sidecars(folder)
    (folder / "b.txt").unlink()
    fails(folder, r"b\.mp4 has no caption; write one to b\.txt")
    (folder / "b.txt").write_text(" \n")
    fails(folder, r"b\.txt is empty")


def test_caption_without_clip(folder: Path) -> None:
    sidecars(folder)
    (folder / "c.txt").write_text("third")
    fails(folder, r"c\.txt is a caption without a clip")


def test_caption_that_is_not_text(folder: Path) -> None:
    sidecars(folder)
    (folder / "a.txt").write_bytes(b"\xff\xfe\x00\xd8")
    fails(folder, r"a\.txt is not UTF-8")


def test_more_than_one_place(folder: Path) -> None:
    jsonl(folder, A, B)
    (folder / "a.txt").write_text("first")
    fails(folder, r"captions in metadata\.jsonl and in a\.txt")
    (folder / "metadata.csv").write_text("file_name,caption\n")
    fails(folder, r"has both metadata\.jsonl and metadata\.csv")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{broken", r"line 2 is not JSON"),
        ("[1]", r"line 2 is not a JSON object"),
        ({"caption": "x"}, r"line 2 has no file_name"),
        ({"file_name": "b.mp4"}, r"line 2 has no caption"),
        ({"file_name": "b.mp4", "caption": ""}, r"line 2 has no caption"),
        ({"file_name": "b.mp4", "caption": 3}, r"line 2 has no caption"),
        ({"file_name": "b.mp4", "caption": "x", "text": "y"}, r"line 2 has both caption and text"),
        ({"file_name": "a.mov", "caption": "x"}, r"line 2 gives a second caption for a\.mov"),
        ({"file_name": "c.mp4", "caption": "x"}, r"line 2 names c\.mp4, which is not there"),
        ({"file_name": "../c.mp4", "caption": "x"}, r"line 2 names \.\./c\.mp4, which lies outside"),
        ({"file_name": "metadata.jsonl", "caption": "x"}, r"line 2 names metadata\.jsonl, which is no clip"),
    ],
)
def test_bad_lines_are_named(folder: Path, row: object, words: str) -> None:
    jsonl(folder, A, row, B)
    fails(folder, words)


def test_clip_that_the_metadata_leaves_out(folder: Path) -> None:
    jsonl(folder, A)
    fails(folder, r"b\.mp4 has no caption; add a line for it to metadata\.jsonl")


def test_bad_csv(folder: Path) -> None:
    path = folder / "metadata.csv"
    path.write_text("name,caption\na.mov,x\n")
    fails(folder, r"metadata\.csv, line 1 must name the columns file_name and caption")
    path.write_text("file_name,caption\na.mov,one, two\n")
    fails(folder, r"line 2 has too many columns")
    path.write_text("file_name,caption\na.mov\n")
    fails(folder, r"line 2 has no caption")
