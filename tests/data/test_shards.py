"""Shards and what is read from them: every row as it was written, batches of one shape, a stream as in memory."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from w2svd_core.condition import Condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.data.shard_sets import INDEX, Index, PromptSet, ShardSet
from w2svd_core.data.shards import NULL, Row, Source, known_rows, write_clips, write_null, write_prompts
from w2svd_core.data.training_set import TrainingSet, bucket_rows
from w2svd_core.errors import UserError
from w2svd_core.randomness import shuffled_rows

CPU = torch.device("cpu")
SHAPES = {"a": (4, 2, 4, 4), "b": (4, 3, 2, 6)}
MADE = {"clips": "1", "captions": "2", "size": "3", "codec": "4", "text": "5", "start": ""}


def row(name: str) -> Row:
    rng = torch.Generator().manual_seed(int(name[1:]) + 100 * ord(name[0]))
    shape = SHAPES[name[0]]
    fields = {"start": torch.randn(1, *shape, generator=rng).bfloat16(), "image": torch.randn(1, 3, 5, generator=rng)}
    return Row(name, Source(10, 20, 5, False), torch.randn(1, *shape, generator=rng), fields)


def text(number: int) -> torch.Tensor:
    """One prompt's embedding: few words, and zeros behind them."""
    value = torch.zeros(1, 12, 6)
    value[:, : 2 + number % 3] = torch.randn(1, 2 + number % 3, 6, generator=torch.Generator().manual_seed(number))
    return value


def build(folder: Path, names: list[str]) -> tuple[Path, dict[str, Row]]:
    """A prepared folder; shards of three rows of one shape, and of four prompts."""
    rows = {name: row(name) for name in names}
    for letter in SHAPES:
        mine = [rows[name] for name in names if name[0] == letter]
        for start in range(0, len(mine), 3):
            write_clips(folder / "clips-1", mine[start : start + 3])
    for start in range(0, len(names), 4):
        some = range(start, min(start + 4, len(names)))
        embeddings = Condition({"text": torch.cat([text(number) for number in some])})
        write_prompts(folder / "text-1", [f"prompt {number}" for number in some], embeddings)
    write_null(folder / "text-1", Condition({"text": text(77)}), Condition({"text": text(78)}))
    clips, texts = known_rows(folder / "clips-1"), known_rows(folder / "text-1")
    clip_files, text_files = (sorted({place.file for place in known.values()}) for known in (clips, texts))
    table = []
    for number, name in enumerate(names):
        clip, prompt = clips[name], texts[f"prompt {number}"]
        table.append(
            (text_files.index(prompt.file), prompt.row, "ab".index(name[0]), clip_files.index(clip.file), clip.row)
        )
    table.sort(key=lambda one: one[2])
    captions = [f"prompt {number}" for number in range(2)]
    shapes, full = [SHAPES[letter] for letter in sorted({name[0] for name in names})], {"text": [12, 6]}
    where = ("../text-1", "../clips-1")
    Index(MADE, *where, text_files, clip_files, full, shapes, table, "order", captions).write(folder / "prepared-1")
    return folder / "prepared-1", rows


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, list[Row]]:
    names = ["a0", "b0", "a1", "a2", "b1", "a3", "a4", "b2", "a5", "a6", "b3"]
    place, rows = build(tmp_path_factory.mktemp("mixed"), names)
    return ShardSet(place, MADE), [rows[name] for name in sorted(names, key=lambda name: name[0])]


def test_a_shard_that_was_never_written_to_its_end_is_none(tmp_path: Path) -> None:
    build(tmp_path, ["a0", "a1"])
    before = known_rows(tmp_path / "clips-1")
    (tmp_path / "clips-1" / ".bb-abcd1234.safetensors").write_bytes(b"{")  # as a power cut leaves it
    assert before and known_rows(tmp_path / "clips-1") == before


def test_every_row_comes_back_as_it_was_written(mixed: tuple[ShardSet, list[Row]]) -> None:
    data, rows = mixed
    numbers = [0, 2, 3, 5, 6, 8, 9, 1, 4, 7, 10]  # of the captions, by bucket
    assert len(data) == 11 and data.captions == ("prompt 0", "prompt 1")
    for batch in ([4, 0, 6, 0], [10, 7, 8], [3]):
        latents, condition = data.batch(batch, CPU)
        assert torch.equal(latents, torch.cat([rows[i].latents for i in batch]))
        assert set(condition.fields) == {"text", "image", "start"}
        for name in ("start", "image"):
            assert torch.equal(condition.fields[name], torch.cat([rows[i].fields[name] for i in batch]))
            assert condition.fields[name].dtype == rows[0].fields[name].dtype
        assert torch.equal(condition.fields["text"], torch.cat([text(numbers[i]) for i in batch]))
        assert data.shape(batch) == latents.shape[1:]
    assert torch.equal(data.null.fields["text"], text(77)) and torch.equal(data.empty.fields["text"], text(78))
    with pytest.raises(ValueError, match="2 buckets"):
        data.batch([0, 10], CPU)


def test_padding_is_not_stored(tmp_path: Path) -> None:
    write_prompts(tmp_path, ["one"], Condition({"text": torch.ones(1, 2, 1000).repeat(1, 1, 1)}))
    small = next(tmp_path.iterdir()).stat().st_size
    padded = torch.cat([torch.ones(1, 2, 1000), torch.zeros(1, 500, 1000)], dim=1)
    write_prompts(tmp_path / "b", ["one"], Condition({"text": padded}))
    assert next((tmp_path / "b").iterdir()).stat().st_size < small + 200


def test_a_batch_is_of_one_bucket_and_a_function_of_its_place(mixed: tuple[ShardSet, list[Row]]) -> None:
    data, _ = mixed
    drawn = [data.rows(place, 2, seed=3) for place in range(0, 200, 2)]
    for batch in drawn:
        assert len(batch) == 2
        data.shape(batch)
    assert drawn == [data.rows(place, 2, seed=3) for place in range(0, 200, 2)]
    assert drawn != [data.rows(place, 2, seed=4) for place in range(0, 200, 2)]
    assert data.rows(7, 1, seed=3) == data.rows(7, 1, seed=3)


def test_every_row_is_drawn_about_as_often() -> None:
    sizes, count = [7, 4, 1], 2
    batches = sum(max(size // count, 1) for size in sizes)
    drawn: Counter[tuple[int, int]] = Counter()
    per_epoch = []
    for epoch in range(14):
        buckets = []
        for index in range(batches):
            bucket, place, seed = bucket_rows(sizes, (epoch * batches + index) * count, count, 5)
            drawn.update((bucket, row) for row in shuffled_rows(sizes[bucket], place, count, seed))
            buckets.append(bucket)
        per_epoch.append(buckets)
    assert all(sorted(buckets) == [0, 0, 0, 1, 1, 2] for buckets in per_epoch)
    assert len({tuple(buckets) for buckets in per_epoch}) > 3  # another order each time
    assert {drawn[0, row] for row in range(7)} == {12} and {drawn[1, row] for row in range(4)} == {14}


def test_one_bucket_is_drawn_from_as_in_memory(tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(7)]
    place, rows = build(tmp_path, names)
    data: TrainingSet = ShardSet(place)
    memory: TrainingSet = LatentSet(
        torch.cat([rows[name].latents for name in names]),
        Condition({"text": torch.cat([text(number) for number in range(7)])}),
        Condition({"text": text(77)}),
        tuple(names),
    )
    for start, count, seed in [(0, 2, 0), (6, 3, 7919), (40, 4, 1), (5, 1, 2), (9, 16, 3)]:
        wanted = shuffled_rows(7, start, count, seed)
        assert data.rows(start, count, seed) == memory.rows(start, count, seed) == wanted
    batch = data.rows(0, 3, 0)
    ours, theirs = data.batch(batch, CPU)[0], memory.batch(batch, CPU)[0]
    assert ours is not None and theirs is not None and torch.equal(ours, theirs)
    assert data.shape(batch) == memory.shape(batch) == (4, 2, 4, 4)


def test_prompts_alone(tmp_path: Path) -> None:
    build(tmp_path, ["a0", "a1"])
    texts = sorted({place.file for place in known_rows(tmp_path / "text-1").values()})
    made = {"prompts": "1", "text": "5"}
    Index(made, "../text-1", "../text-1", texts, [], {"text": [12, 6]}, [], [(0, 1), (0, 0), (0, 1)], "o", ["x"]).write(
        tmp_path / "prepared-2"
    )
    data = PromptSet(tmp_path / "prepared-2", (4, 9, 8, 8), made)
    latents, condition = data.batch([0, 1], CPU)
    assert latents is None and torch.equal(condition.fields["text"], torch.cat([text(1), text(0)]))
    assert len(data) == 3 and data.shape([0, 2]) == (4, 9, 8, 8) and data.rows(4, 2, 0) == shuffled_rows(3, 4, 2, 0)
    assert data.fingerprint() != PromptSet(tmp_path / "prepared-2", (4, 9, 8, 4), made).fingerprint()
    with pytest.raises(UserError, match="holds prompts without clips"):
        ShardSet(tmp_path / "prepared-2")


@pytest.mark.parametrize(
    ("part", "words"),
    [("codec", "another VAE than"), ("text", "another text encoder or negative prompt than"),
     ("size", "another sizes or frame rate than"), ("clips", "another clips than"), ("start", "another image encoder")],
)  # fmt: skip
def test_a_cache_of_something_else_is_refused_by_name(tmp_path: Path, part: str, words: str) -> None:
    place, _ = build(tmp_path, ["a0"])
    with pytest.raises(UserError, match=words):
        ShardSet(place, {**MADE, part: "other"})
    assert len(ShardSet(place, MADE)) == 1


def test_a_fingerprint_follows_parts_and_order(tmp_path: Path) -> None:
    place, _ = build(tmp_path, ["a0", "a1"])
    first = ShardSet(place).fingerprint()
    tree = json.loads((place / INDEX).read_text())
    seen = {first}
    for change in ({"order": "other"}, {"made_of": {**MADE, "codec": "other"}}):
        (place / INDEX).write_text(json.dumps({**tree, **change}))
        seen.add(ShardSet(place).fingerprint())
    (place / INDEX).write_text(json.dumps(tree))
    assert len(seen) == 3 and ShardSet(place).fingerprint() == first


def test_what_is_gone_or_broken_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no prepared clips; make them by"):
        ShardSet(tmp_path)
    place, _ = build(tmp_path, ["a0", "a1", "a2", "a3"])
    data = ShardSet(place)
    shard = sorted((tmp_path / "clips-1").iterdir())[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-30])
    with pytest.raises(UserError, match=rf"{shard.name} is gone or broken; prepare the clips again"):
        [data.batch([number], CPU) for number in range(4)]
    with pytest.raises(UserError, match="is no whole shard of this program; remove it"):
        shard.write_bytes(whole[:40])
        known_rows(tmp_path / "clips-1")
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name} is gone; prepare the clips again"):
        ShardSet(place)
    (tmp_path / "text-1" / NULL).unlink()
    with pytest.raises(UserError, match=r"null\.safetensors is gone"):
        ShardSet(place)
    (place / INDEX).write_text("{")
    with pytest.raises(UserError, match=r"index\.json is broken"):
        ShardSet(place)
