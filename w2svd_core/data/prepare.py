"""From clips or prompts to shards: text first, then clip after clip, each encoder dropped before the next is loaded.

What is encoded stays, so that the same command goes on where it was stopped, and a folder that has grown costs only
what is new. A clip that can't be used is dropped with its reason; the others go on.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import UserError
from ..memory import free_memory
from ..settings import Data
from .buckets import Bucket, Plan
from .clips import Clip
from .codec import Codec, to_signed
from .encoder_source import EncoderSource, StartEncoder, empty_condition, null_condition
from .indexing import index_clips, index_prompts
from .latents import Progress
from .shards import (
    CLIP_BYTES,
    CLIP_ROWS,
    NULL,
    TEXT_ROWS,
    Row,
    Source,
    known_rows,
    prompt_key,
    read_null,
    write_clips,
    write_null,
    write_prompts,
)
from .video import Video, read_excerpt
from .wanted import Wanted, wanted

T = TypeVar("T")
R = TypeVar("R")


class Stopped(KeyboardInterrupt):
    """An interrupt; what was encoded is on the disk."""


@dataclass(frozen=True)
class Prepared:
    """A finished preparation.

    Attributes:
        want: what was to be prepared, and where it lies.
        dropped: reasons, by the number of the clip.
        new: clips or prompts that were encoded now.
    """

    want: Wanted
    dropped: Mapping[int, str]
    new: int


def prepare(settings: Data, source: EncoderSource, progress: Progress) -> Prepared:
    """Encode what is not there yet, and write the index of everything.

    Raises:
        UserError: the input, an encoder or the disk does not serve; every clip was dropped.
        Stopped: by an interrupt.
    """
    want = wanted(settings, source, progress)
    try:
        new = _encode_prompts(want, source, progress)
        if not want.clips:
            index_prompts(want).write(want.folder)
            return Prepared(want, {}, new)
        dropped, new = _encode_clips(want, settings, source, progress)
    except KeyboardInterrupt as interrupt:
        raise Stopped from interrupt
    if len(dropped) == len(want.clips):
        raise UserError(f"none of the {len(dropped)} clips can be used; the first: {dropped[0]}")
    index_clips(want, dropped).write(want.folder)
    return Prepared(want, dropped, new)


# ---- text


def _encode_prompts(want: Wanted, source: EncoderSource, progress: Progress) -> int:
    """Encode the prompts that are not known yet; returns how many."""
    known = known_rows(want.text)
    new = list(dict.fromkeys(prompt for prompt in want.prompts if prompt_key(prompt) not in known))
    if not new and (want.text / NULL).is_file() and read_null(want.text)[1] is not None:
        return 0
    encoder = source.load_prompts()
    write_null(want.text, null_condition(encoder), empty_condition(encoder))
    for start in range(0, len(new), TEXT_ROWS):
        some = new[start : start + TEXT_ROWS]
        write_prompts(want.text, [prompt_key(prompt) for prompt in some], encoder.encode(some))
        progress("encoding prompts", start + len(some), len(new))
    del encoder
    free_memory()
    return len(new)


# ---- clips


def _encode_clips(
    want: Wanted, settings: Data, source: EncoderSource, progress: Progress
) -> tuple[dict[int, str], int]:
    """Encode the clips that are not known yet; returns the reasons of those that were dropped, and how many are new."""
    known = known_rows(want.latents)
    new = [number for number, key in enumerate(want.keys) if key not in known]
    dropped: dict[int, str] = {}
    if not new:
        return dropped, 0
    plan = Plan.of(settings, source.geometry)
    codec = source.load_codec()
    start = source.load_start(codec)
    shelf = _Shelf(want.latents)
    read = _reader(want.clips, plan, settings.fps)
    try:
        with _threads(settings.workers) as pool:
            for done, (number, cut) in enumerate(_in_order(pool, read, new, 2 * settings.workers), start=1):
                row = cut if isinstance(cut, str) else _encode(want.keys[number], cut, codec, start)
                if isinstance(row, str):
                    dropped[number] = row
                else:
                    shelf.add(row)
                progress("encoding clips", done, len(new))
    finally:
        shelf.write()  # after an interrupt, too
    del codec, start
    free_memory()
    return dropped, len(new) - len(dropped)


@dataclass(frozen=True)
class _Cut:
    """A clip as it goes into the codec."""

    clip: Clip
    video: Video
    source: Source


def _reader(clips: Sequence[Clip], plan: Plan, fps: float) -> Callable[[int], _Cut | str]:
    """What decodes the clip of a number, or says why it can't be used."""

    def read(number: int) -> _Cut | str:
        path = clips[number].path
        try:
            found = read_excerpt(path, plan.frames, fps, plan.shape)
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{path} can't be read ({error.strerror or error}); check its permissions"
        length = plan.length(len(found.video))
        if not length:
            return (
                f"{path} is too short: it has {len(found.video)} frames at {fps:g} fps and {plan.min_frames} are "
                "needed; remove it or lower data.min_frames"
            )
        goes_on = found.goes_on or length < len(found.video)
        return _Cut(clips[number], found.video[:length], Source(found.height, found.width, length, goes_on))

    return read


@torch.no_grad()
def _encode(key: str, cut: _Cut, codec: Codec, start: StartEncoder | None) -> Row | str:
    """The row of a clip, or why there is none."""
    video = to_signed(cut.video[None])
    latents = codec.encode(video).cpu()
    made = {} if start is None else start.encode(video[:, :, :1], video.shape[2], [cut.clip.caption])
    fields = {name: value.cpu() for name, value in made.items()}
    if not all(tensor.isfinite().all() for tensor in (latents, *fields.values())):
        return f"{cut.clip.path} has latents that are not finite numbers; check the VAE in model.vae"
    return Row(key, cut.source, latents, fields)


class _Shelf:
    """Rows that wait until there are enough of their shape for a shard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[Bucket, list[Row]] = defaultdict(list)

    def add(self, row: Row) -> None:
        """Put a row to those of its shape; write them when they are a shard."""
        _, _, f, h, w = row.latents.shape
        rows = self._rows[Bucket(f, h, w)]
        rows.append(row)
        if len(rows) >= CLIP_ROWS or sum(one.bytes() for one in rows) >= CLIP_BYTES:
            write_clips(self._folder, rows)
            rows.clear()

    def write(self) -> None:
        """Write what is left."""
        for rows in filter(None, self._rows.values()):
            write_clips(self._folder, rows)
            rows.clear()


class _threads(ThreadPoolExecutor):
    """A pool that leaves what was not begun, when its block is left."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[tuple[T, R]]:
    """Items with their results, in their order; at most `ahead` are under way, so that memory stays bounded."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    items = iter(items)
    waiting.extend((item, pool.submit(work, item)) for item in itertools.islice(items, ahead))
    while waiting:
        item, future = waiting.popleft()
        result = future.result()
        waiting.extend((more, pool.submit(work, more)) for more in itertools.islice(items, 1))
        yield item, result
