"""The index of a preparation: for each clip or prompt, the shards and rows that hold it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from .shard_sets import Index
from .shards import hash_of_all, known_rows, prompt_key, shard_metadata, shard_shape
from .wanted import Wanted

CAPTIONS = 64  # that an index keeps, of its first rows


def index_prompts(want: Wanted) -> Index:
    known = known_rows(want.text)
    files = _Numbers()
    places = [known[prompt_key(prompt)] for prompt in want.prompts]
    rows = [(files.of(place.file), place.row) for place in places]
    order = hash_of_all(prompt_key(prompt) for prompt in want.prompts)
    return _index(want, files.names, [], [], rows, order, want.prompts)


def index_clips(want: Wanted, dropped: Mapping[int, str]) -> Index:
    """All that was not dropped, the largest bucket first, in a bucket by name."""
    known, texts = known_rows(want.latents), known_rows(want.text)
    used = [number for number in range(len(want.clips)) if number not in dropped]
    places = {number: known[want.keys[number]] for number in used}
    shape_of = {file: shard_shape(want.latents / file) for file in {place.file for place in places.values()}}
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number in used:
        members[shape_of[places[number].file]].append(number)
    buckets = sorted(members, key=lambda shape: (-len(members[shape]), shape))
    text_files, clip_files = _Numbers(), _Numbers()
    rows, keys, captions = [], [], []
    for bucket, shape in enumerate(buckets):
        for number in members[shape]:
            text, clip = texts[prompt_key(want.prompts[number])], places[number]
            rows.append((text_files.of(text.file), text.row, bucket, clip_files.of(clip.file), clip.row))
            keys.append(f"{want.keys[number]} {prompt_key(want.prompts[number])}")
            captions.append(want.prompts[number])
    return _index(want, text_files.names, clip_files.names, buckets, rows, hash_of_all(keys), captions)


class _Numbers:
    """Numbers for names, in the order of their appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    @property
    def names(self) -> list[str]:
        return list(self._numbers)


def _index(
    want: Wanted,
    text_files: Sequence[str],
    clip_files: Sequence[str],
    buckets: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    order: str,
    captions: Sequence[str],
) -> Index:
    return Index(
        made_of=want.made_of,
        text=f"../{want.text.name}",
        clips=f"../{want.latents.name}",
        text_files=text_files,
        clip_files=clip_files,
        full=shard_metadata(want.text / text_files[0], "full"),
        buckets=buckets,
        rows=rows,
        order=order,
        captions=captions[:CAPTIONS],
    )
