"""Training sets that were prepared: clips in shards, read row by row, and prompts alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..condition import Condition
from ..errors import UserError
from ..files import write_text
from ..hashing import value_hash
from ..randomness import shuffled_rows
from .shards import CONDITION, NULL, read_null, read_rows
from .training_set import bucket_rows

INDEX = "index.json"
PARTS = {
    "clips": "clips",
    "captions": "captions",
    "prompts": "prompts",
    "size": "sizes or frame rate",
    "codec": "VAE",
    "text": "text encoder or negative prompt",
    "start": "image encoder",
}
"""What a preparation depends on, and how a sentence names it."""


@dataclass(frozen=True)
class Index:
    """Which rows make up a training set; `index.json`.

    Attributes:
        made_of: fingerprints by part (:data:`PARTS`).
        text, clips: the folders of shards, relative to the index's; no clips for prompts alone.
        text_files, clip_files: names of the shards.
        full: sizes of a prompt's fields.
        buckets: (c, f, h, w) of each bucket's latents.
        rows: for each row (text shard, row in it), and for clips (..., bucket, clip shard, row in it); by bucket.
        order: hash of the keys of all rows.
        captions: of the first rows.
    """

    made_of: Mapping[str, str]
    text: str
    clips: str
    text_files: Sequence[str]
    clip_files: Sequence[str]
    full: Mapping[str, Sequence[int]]
    buckets: Sequence[Sequence[int]]
    rows: Sequence[Sequence[int]]
    order: str
    captions: Sequence[str]

    def write(self, folder: Path) -> None:
        """Write it atomically."""
        write_text(folder / INDEX, json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> Index:
        """Read it back.

        Raises:
            UserError: it is not there, or not whole.
        """
        try:
            return Index(**json.loads((folder / INDEX).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no prepared clips; make them by python -m w2svd_core.prepare") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder / INDEX} is broken; remove it and prepare the clips again") from error

    def files(self, folder: Path) -> list[Path]:
        """Every file that it names."""
        texts = [folder / self.text / name for name in (NULL, *self.text_files)]
        return texts + [folder / self.clips / name for name in self.clip_files]


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts in which two preparations differ, in words."""
    return [words for part, words in PARTS.items() if then.get(part, "") != now.get(part, "")]


def check_made_of(folder: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse what was prepared from something else.

    Raises:
        UserError: it was; the sentence names what differs.
    """
    other = differences(then, now)
    if other:
        raise UserError(
            f"{folder} was prepared with another {' and '.join(other)} than this recipe has; prepare them for it "
            "by python -m w2svd_core.prepare"
        )


class PromptSet:
    """Prompts without clips: conditions alone, all of one shape.

    Args:
        folder: of the index.
        shape: (c, f, h, w) of the latents that are to be made of them.
        made_of: what the recipe stands for; None takes whatever the folder holds.

    Raises:
        UserError: the folder holds nothing, or something made of other parts.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int, int], made_of: Mapping[str, str] | None = None
    ) -> None:
        self._rows = _Rows(folder, made_of)
        self._shape = shape
        self.null, self.captions = self._rows.null, self._rows.captions

    @property
    def empty(self) -> Condition:
        """The empty prompt, one row.

        Raises:
            UserError: an older version prepared the set without it.
        """
        return self._rows.empty

    def __len__(self) -> int:
        return len(self._rows.table)

    def fingerprint(self) -> str:
        """Changes with prompts, their order, the text encoder and the shape."""
        return value_hash([self._rows.fingerprint(), self._shape])

    def rows(self, place: int, count: int, seed: int) -> list[int]:
        """`count` rows at a place of an endless stream that goes through all prompts, reshuffled each time."""
        return shuffled_rows(len(self), place, count, seed)

    def shape(self, rows: Sequence[int]) -> tuple[int, int, int, int]:
        """(c, f, h, w) of the latents to make."""
        return self._shape

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[None, Condition]:
        """No latents, and the conditions of some rows."""
        return None, Condition(self._rows.texts(rows)).to(device)


class ShardSet:
    """Clips in shards. It keeps an index in memory and reads rows from the disk as they are asked for.

    Args:
        folder: of the index.
        made_of: what the recipe stands for; None takes whatever the folder holds.

    Raises:
        UserError: the folder holds no clips, or some made of other parts.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, str] | None = None) -> None:
        self._rows = _Rows(folder, made_of)
        if not self._rows.index.clip_files:
            raise UserError(f"{folder} holds prompts without clips; set data.prompts, or prepare clips")
        self._sizes = np.bincount(self._rows.table[:, 2], minlength=len(self._rows.index.buckets)).tolist()
        self._starts = np.cumsum([0, *self._sizes]).tolist()
        self.null, self.captions = self._rows.null, self._rows.captions

    @property
    def empty(self) -> Condition:
        """The empty prompt, one row.

        Raises:
            UserError: an older version prepared the set without it.
        """
        return self._rows.empty

    def __len__(self) -> int:
        return len(self._rows.table)

    def fingerprint(self) -> str:
        """Changes with clips, captions, their order, size, rate and encoders."""
        return self._rows.fingerprint()

    def rows(self, place: int, count: int, seed: int) -> list[int]:
        """`count` rows of one bucket; see `TrainingSet.rows`. With one bucket, those of `shuffled_rows`."""
        bucket, start, order = bucket_rows(self._sizes, place, count, seed)
        return [self._starts[bucket] + row for row in shuffled_rows(self._sizes[bucket], start, count, order)]

    def shape(self, rows: Sequence[int]) -> tuple[int, int, int, int]:
        """(c, f, h, w) of rows of one bucket.

        Raises:
            ValueError: they are of several.
        """
        buckets = {int(self._rows.table[row, 2]) for row in rows}
        if len(buckets) != 1:
            raise ValueError(f"rows of {len(buckets)} buckets do not make a batch")
        c, f, h, w = self._rows.index.buckets[buckets.pop()]
        return c, f, h, w

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Condition]:
        """Latents `b c f h w` and conditions of rows of one bucket, on a device.

        Raises:
            UserError: a shard is gone or broken.
            ValueError: the rows are of several buckets.
        """
        self.shape(rows)
        tensors = self._rows.clips(rows)
        fields = {name.removeprefix(CONDITION): t for name, t in tensors.items() if name != "latents"}
        return tensors["latents"].to(device), Condition({**self._rows.texts(rows), **fields}).to(device)


class _Rows:
    """An index with what it names."""

    def __init__(self, folder: Path, made_of: Mapping[str, str] | None) -> None:
        self.folder, self.index = folder, Index.read(folder)
        if made_of is not None:
            check_made_of(folder, self.index.made_of, made_of)
        for file in self.index.files(folder):
            if not file.is_file():
                raise UserError(f"{file} is gone; prepare the clips again by python -m w2svd_core.prepare")
        self.table = np.asarray(self.index.rows, np.int32)  # `rows 2`, or `rows 5`
        self.captions = tuple(self.index.captions)
        self.null, self._empty = read_null(folder / self.index.text)

    @property
    def empty(self) -> Condition:
        if self._empty is None:
            raise UserError(
                f"{self.folder} was prepared without the empty prompt, which stands for captions that are left out; "
                "run python -m w2svd_core.prepare once more, it adds that alone"
            )
        return self._empty

    def fingerprint(self) -> str:
        """The parts, and which rows came of them in which order; not how they are spread over shards."""
        return value_hash([dict(self.index.made_of), self.index.order])

    def texts(self, rows: Sequence[int]) -> dict[str, Tensor]:
        found = self._gather(rows, 0, self.index.text, self.index.text_files)
        return {name.removeprefix(CONDITION): value for name, value in found.items()}

    def clips(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return self._gather(rows, 3, self.index.clips, self.index.clip_files)

    def _gather(self, rows: Sequence[int], column: int, place: str, files: Sequence[str]) -> dict[str, Tensor]:
        """Rows of every tensor, in the order asked for; each shard is opened once."""
        where = self.table[list(rows), column : column + 2]
        parts: list[dict[str, Tensor]] = []
        order: list[Any] = []
        for shard in np.unique(where[:, 0]):
            mine = np.flatnonzero(where[:, 0] == shard)
            wanted = [int(row) for row in where[mine, 1]]
            parts.append(read_rows(self.folder / place / files[int(shard)], wanted, self.index.full))
            order += mine.tolist()
        back = torch.as_tensor(np.argsort(order))
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
