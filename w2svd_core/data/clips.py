"""A folder of clips with captions: beside each clip in a text file, or all in one metadata file.

A clip is a video file, or a folder that holds images and nothing else. Listing opens no clip and walks the tree once.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import UserError
from .image_folders import IMAGES

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
"""Files that count as clips."""

METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True, slots=True)
class Clip:
    """A video file, or a folder of images, and what it shows.

    `name` is its path relative to the folder of clips, with slashes.
    """

    path: Path
    caption: str
    name: str


def list_clips(folder: Path) -> list[Clip]:
    """The clips of a folder and of the folders in it, sorted by path.

    Captions stand in ``<clip>.txt`` beside each clip, or in one ``metadata.jsonl`` or ``metadata.csv`` with
    the columns ``file_name`` (relative to the folder) and ``caption`` or ``text``. Names that start with a
    dot are left alone, and links to folders are not followed. A folder within it that holds images and nothing else is
    a clip; its caption stands beside it in ``<folder>.txt``.

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
    found = _scan(folder)
    captions = _from_metadata(folder, places[0], found) if places else _from_sidecars(folder, found)
    return [Clip(folder / name, captions[name], name) for name in sorted(captions, key=_order)]


@dataclass(frozen=True)
class _Found:
    """Names relative to the folder, with slashes: clips, and for each text file beside a clip that clip's name."""

    clips: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def _scan(folder: Path) -> _Found:
    """Everything under a folder that no dot hides.

    Raises:
        UserError: there is no clip.
    """
    found, waiting = _Found(), [""]
    while waiting:
        place = waiting.pop()
        images, others, folders = 0, 0, []
        with os.scandir(folder / place) as entries:
            for entry in entries:
                name, suffix = place + entry.name, os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    others += 1
                    folders += [] if entry.is_symlink() else [f"{name}/"]
                elif suffix in IMAGES:
                    images += 1
                else:
                    others += 1
                    if suffix in SUFFIXES and entry.is_file():
                        found.clips.append(name)
                    elif suffix == ".txt" and entry.is_file():
                        found.texts.append(name)
        if place and images and not others:
            found.clips.append(place.removesuffix("/"))
        waiting += folders
    if not found.clips:
        raise UserError(f"{folder} holds no clips ({', '.join(SUFFIXES)}, or folders of images); check data.folder")
    found.clips.sort(key=_order)
    found.texts.sort(key=_order)
    return found


def _order(name: str) -> list[str]:
    """As paths sort: part by part."""
    return name.split("/")


def _text_of(name: str) -> str:
    """The text file beside a clip; a folder of images keeps the whole of its name."""
    stem, suffix = os.path.splitext(name)
    return f"{stem if suffix.lower() in SUFFIXES else name}.txt"


def _from_sidecars(folder: Path, found: _Found) -> dict[str, str]:
    owners: dict[str, str] = {}
    for name in found.clips:
        owner = owners.setdefault(_text_of(name), name)
        if owner != name:
            text = _text_of(name).rpartition("/")[2]
            raise UserError(
                f"{folder / owner} and {(folder / name).name} would share the caption {text}; rename one of the clips"
            )
    for text in found.texts:
        if text not in owners:
            raise UserError(f"{folder / text} is a caption without a clip; add the clip or remove the caption")
    there = set(found.texts)
    return {name: _read_sidecar(folder, name, _text_of(name) in there) for name in found.clips}


def _read_sidecar(folder: Path, name: str, there: bool) -> str:
    path = folder / _text_of(name)
    if not there:
        raise UserError(f"{folder / name} has no caption; write one to {path.name} beside it")
    caption = " ".join(_read_text(path).split())
    if not caption:
        raise UserError(f"{path} is empty; write the caption of {(folder / name).name} to it")
    return caption


def _from_metadata(folder: Path, metadata: str, found: _Found) -> dict[str, str]:
    captions: dict[str, str] = {}
    clips, texts = set(found.clips), set(found.texts)
    for where, row in _jsonl_rows(folder / metadata) if metadata.endswith(".jsonl") else _csv_rows(folder / metadata):
        name = _file_name(where, row)
        short = name.rpartition("/")[2]
        if name not in clips:
            if not (folder / name).exists():
                raise UserError(f"{where} names {short}, which is not there; add it or remove the line")
            if os.path.splitext(name)[1].lower() not in SUFFIXES:
                raise UserError(
                    f"{where} names {short}, which is no clip; clips end in one of {', '.join(SUFFIXES)}, or are "
                    "folders of images alone"
                )
        if name in captions:
            raise UserError(f"{where} gives a second caption for {short}; keep one of them")
        captions[name] = _caption(where, row)
    for name in found.clips:
        if name not in captions:
            raise UserError(f"{folder / name} has no caption; add a line for it to {metadata}")
        if _text_of(name) in texts:
            text = _text_of(name).rpartition("/")[2]
            raise UserError(f"{folder / name} has captions in {metadata} and in {text}; keep one of them")
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


def _file_name(where: str, row: dict[str, object]) -> str:
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where} has no file_name; name the clip relative to the folder")
    parts = PurePosixPath(name.strip().replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{where} names {name}, which lies outside of the folder; move the clip into it")
    return parts.as_posix()


def _caption(where: str, row: dict[str, object]) -> str:
    given = [row[key] for key in ("caption", "text") if row.get(key) not in (None, "")]
    if len(given) == 2:
        raise UserError(f"{where} has both caption and text; keep one of them")
    caption = " ".join(given[0].split()) if given and isinstance(given[0], str) else ""
    if not caption:
        raise UserError(f"{where} has no caption; write it under caption or text")
    return caption


def read_prompts(path: Path, named_in: str = "data.prompts") -> list[str]:
    """The prompts of a text file, one in each line; empty lines count for nothing.

    Args:
        named_in: the setting or option that names the file, for errors.

    Raises:
        UserError: the file is missing, not UTF-8, or has no prompt.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there; check {named_in}")
    prompts = [" ".join(line.split()) for line in _read_text(path).splitlines()]
    if not any(prompts):
        raise UserError(f"{path} holds no prompts; write one in each line")
    return [prompt for prompt in prompts if prompt]


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text but {_encoding(data)}; save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path} is not UTF-8 text but {_encoding(data)}; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoding(data: bytes) -> str:
    """What a text that is not UTF-8 looks like."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    return "UTF-16 or binary" if b"\0" in data else "an older encoding, such as Latin-1 or Windows-1252"
