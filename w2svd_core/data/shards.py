"""Encoded clips and prompts on disk: safetensors shards, found again by the keys of what they were made of.

    text-<fingerprint>/     null.safetensors, and shards of prompt embeddings; a key is the hash of a prompt
    clips-<fingerprint>/    shards of latents and first-frame fields of one shape each; a key is the hash of a file, and
                            of its caption where the first-frame fields depend on that
    prepared-<fingerprint>/ index.json: which rows of which shards make up a training set; report.md and others

The fingerprint in a folder's name is that of everything else that its contents depend on. What is there is therefore
right, whoever made it: a preparation that was interrupted, the same clips at another time, a folder that has grown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..condition import Condition
from ..errors import UserError
from ..files import opened_safetensors, read_safetensors, write_safetensors
from ..hashing import value_hash
from .clips import Clip
from .image_folders import frame_files

LAYOUT = 1  # of the shards; another number makes them anew
TEXT_ROWS = 64  # prompts in a shard
CLIP_ROWS, CLIP_BYTES = 32, 256 << 20  # clips in a shard, at most; at most about so large
CONDITION = "condition/"  # before the names of a condition's fields
NULL = "null.safetensors"  # the file of the two prompts that are no caption
EMPTY = "empty/"  # before the fields of the second one


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a shard."""

    file: str
    row: int


@dataclass(frozen=True)
class Source:
    """What a row was cut out of.

    Attributes:
        height, width: of the clip's own picture, px.
        frames: that were used.
        goes_on: the clip is longer.
    """

    height: int
    width: int
    frames: int
    goes_on: bool


@dataclass(frozen=True)
class Row:
    """An encoded clip: latents `1 c f h w`, fields of one row each."""

    key: str
    source: Source
    latents: Tensor
    fields: Mapping[str, Tensor]

    def bytes(self) -> int:
        """What it takes."""
        return sum(t.nbytes for t in (self.latents, *self.fields.values()))


def clip_key(clip: Clip) -> str:
    """Changes with the file: its name, size and time; of a folder of images, those of all images."""
    files = frame_files(clip.path) if clip.path.is_dir() else [clip.path]
    stats = [(file.name, file.stat()) for file in files]
    return value_hash([clip.name, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]])


def caption_key(clip: str, caption: str) -> str:
    """Changes with a clip's key and its caption."""
    return value_hash([clip, "caption", caption])


def prompt_key(prompt: str) -> str:
    """Changes with the prompt."""
    return value_hash(["prompt", prompt])


def hash_of_all(parts: Iterable[str]) -> str:
    """Of any number of texts and their order, in constant memory; 16 characters."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part}\n".encode())
    return digest.hexdigest()[:16]


def write_prompts(folder: Path, keys: Sequence[str], condition: Condition) -> None:
    """Write one shard of prompt embeddings, zeros at the end of all rows left out."""
    full = {name: list(value.shape[1:]) for name, value in condition.fields.items()}
    cut = {f"{CONDITION}{name}": _without_padding(value) for name, value in condition.fields.items()}
    _write(folder, keys, cut, {"full": json.dumps(full)})


def write_clips(folder: Path, rows: Sequence[Row]) -> None:
    """Write one shard of clips of one shape."""
    tensors = {"latents": torch.cat([row.latents for row in rows])}
    for name in rows[0].fields:
        tensors[f"{CONDITION}{name}"] = torch.cat([row.fields[name] for row in rows])
    sources = json.dumps([asdict(row.source) for row in rows])
    _write(folder, [row.key for row in rows], tensors, {"sources": sources})


def write_null(folder: Path, null: Condition, empty: Condition) -> None:
    """Write the condition that guidance leads away from, and that of the empty prompt."""
    rows = ((CONDITION, null), (EMPTY, empty))
    write_safetensors(folder / NULL, {f"{p}{name}": value for p, one in rows for name, value in one.fields.items()})


def read_null(folder: Path) -> tuple[Condition, Condition | None]:
    """What `write_null` wrote; None for an empty prompt that an older version did not write.

    Raises:
        UserError: the file is gone or broken.
    """
    tensors, _ = read_safetensors(folder / NULL)
    null, empty = (
        {name.removeprefix(p): value for name, value in tensors.items() if name.startswith(p)}
        for p in (CONDITION, EMPTY)
    )
    return Condition(null), Condition(empty) if empty else None


def _write(folder: Path, keys: Sequence[str], tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    path = folder / f"{hash_of_all(keys)}.safetensors"
    write_safetensors(path, tensors, {"keys": json.dumps(list(keys)), **about})


def _without_padding(value: Tensor) -> Tensor:
    """`b n ...` up to the last position that is not zero in every row; other tensors as they are."""
    if value.ndim < 3:
        return value
    used = (value != 0).transpose(0, 1).flatten(1).any(1).nonzero()
    return value[:, : int(used[-1]) + 1 if len(used) else 1]


def known_rows(folder: Path) -> dict[str, Place]:
    """Every row that is in a folder's shards, by its key.

    Raises:
        UserError: a shard is broken.
    """
    found: dict[str, Place] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name != NULL and not path.name.startswith("."):  # one that is being written, or never was to its end
            keys = shard_metadata(path, "keys")
            found.update({key: Place(path.name, row) for row, key in enumerate(keys) if key not in found})
    return found


def shard_metadata(path: Path, name: str) -> Any:
    """An entry of a shard's metadata.

    Raises:
        UserError: the shard is broken.
    """
    try:
        with opened_safetensors(path) as file:
            return json.loads(file.metadata()[name])
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no whole shard of this program; remove it and prepare the clips again") from error


def shard_sources(path: Path) -> list[Source]:
    """What each row of a shard of clips was cut out of."""
    return [Source(**one) for one in shard_metadata(path, "sources")]


def shard_shape(path: Path) -> tuple[int, int, int, int]:
    """(c, f, h, w) of the latents of a shard."""
    with opened_safetensors(path) as file:
        _, c, f, h, w = file.get_slice("latents").get_shape()
    return c, f, h, w


def read_rows(path: Path, rows: Sequence[int], full: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Some rows of every tensor of a shard, each one copied from the disk alone.

    Args:
        full: sizes of a row, by field; what is shorter in the shard is filled up with zeros.

    Raises:
        UserError: the shard is gone or broken.
    """
    try:
        with opened_safetensors(path) as file:
            out = {}
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                value = torch.cat([part[row : row + 1] for row in rows])
                size = full.get(name.removeprefix(CONDITION), value.shape[1:])
                out[name] = _with_padding(value, size)
            return out
    except UserError as error:
        raise UserError(f"{path} is gone or broken; prepare the clips again by python -m w2svd_core.prepare") from error


def _with_padding(value: Tensor, size: Sequence[int]) -> Tensor:
    if list(value.shape[1:]) == list(size):
        return value
    whole = value.new_zeros(len(value), *size)
    whole[:, : value.shape[1]] = value
    return whole
