"""A folder of clips with captions: beside each clip in a text file, or all in one metadata file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import UserError

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
"""Files that count as clips."""

METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Clip:
    """A video file and what it shows; `name` is its path relative to the folder of clips, with slashes."""

    path: Path
    caption: str
    name: str


def list_clips(folder: Path) -> list[Clip]:
    """The clips of a folder and of the folders in it, sorted by path.

    Captions stand in ``<clip>.txt`` beside each clip, or in one ``metadata.jsonl`` or ``metadata.csv`` with
    the columns ``file_name`` (relative to the folder) and ``caption`` or ``text``. Names that start with a
    dot are left alone, and links to folders are not followed.

    Raises:
        UserError: the folder is missing or empty, a clip has no caption or two, a caption has no clip or
            two, captions stand in more than one kind of place, or a line of the metadata is wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; check data.folder")
    places = [name for name in METADATA if (folder / name).is_file()]
    if len(places) == 2:
        raise UserError(f"{folder} has both {places[0]} and {places[1]}; keep one of them")
    captions = _from_metadata(folder, places[0]) if places else _from_sidecars(folder)
    return [Clip(path, captions[path], path.relative_to(folder).as_posix()) for path in sorted(captions)]


def _from_sidecars(folder: Path) -> dict[Path, str]:
    paths = _visible(folder, SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no clips ({', '.join(SUFFIXES)}); check data.folder")
    owners: dict[Path, Path] = {}
    for path in paths:
        owner = owners.setdefault(path.with_suffix(".txt"), path)
        if owner != path:
            raise UserError(f"{owner} and {path.name} would share the caption {path.stem}.txt; rename one of the clips")
    for text in _visible(folder, (".txt",)):
        if text.with_suffix(".txt") not in owners:
            raise UserError(f"{text} is a caption without a clip; add the clip or remove the caption")
    return {path: _read_sidecar(path) for path in paths}


def _read_sidecar(clip: Path) -> str:
    path = clip.with_suffix(".txt")
    if not path.is_file():
        raise UserError(f"{clip} has no caption; write one to {path.name} beside it")
    caption = " ".join(_read_text(path).split())
    if not caption:
        raise UserError(f"{path} is empty; write the caption of {clip.name} to it")
    return caption


def _from_metadata(folder: Path, name: str) -> dict[Path, str]:
    captions: dict[Path, str] = {}
    rows = _jsonl_rows(folder / name) if name.endswith(".jsonl") else _csv_rows(folder / name)
    for where, row in rows:
        path = folder / _file_name(where, row)
        if not path.is_file():
            raise UserError(f"{where} names {path.name}, which is not there; add it or remove the line")
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{where} names {path.name}, which is no clip; clips end in one of {', '.join(SUFFIXES)}")
        if path in captions:
            raise UserError(f"{where} gives a second caption for {path.name}; keep one of them")
        captions[path] = _caption(where, row)
    paths = _visible(folder, SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no clips ({', '.join(SUFFIXES)}); check data.folder")
    for path in paths:
        if path not in captions:
            raise UserError(f"{path} has no caption; add a line for it to {name}")
        if path.with_suffix(".txt").is_file():
            raise UserError(f"{path} has captions in {name} and in {path.stem}.txt; keep one of them")
    return captions


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON ({error.msg}); write one object in each line") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is not a JSON object; write file_name and caption in braces")
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    columns = reader.fieldnames or []
    if "file_name" not in columns or not {"caption", "text"} & set(columns):
        raise UserError(f"{path}, line 1 must name the columns file_name and caption (or text)")
    for row in reader:
        if None in row:
            raise UserError(
                f"{path}, line {reader.line_num} has too many columns; put quotes around a text with commas"
            )
        yield f"{path}, line {reader.line_num}", dict(row)


def _file_name(where: str, row: dict[str, object]) -> Path:
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where} has no file_name; name the clip relative to the folder")
    parts = PurePosixPath(name.strip().replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{where} names {name}, which lies outside of the folder; move the clip into it")
    return Path(parts)


def _caption(where: str, row: dict[str, object]) -> str:
    given = [row[key] for key in ("caption", "text") if row.get(key) not in (None, "")]
    if len(given) == 2:
        raise UserError(f"{where} has both caption and text; keep one of them")
    caption = " ".join(given[0].split()) if given and isinstance(given[0], str) else ""
    if not caption:
        raise UserError(f"{where} has no caption; write it under caption or text")
    return caption


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from error


def _visible(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files at any depth with one of the suffixes that no dot hides, sorted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
