"""Prompts of several lengths for a model that can't be told what is filler: each row answers as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kind import Programs, Recipes, program_of
from torch import Tensor, nn
from wan_kinds import condition_of, points_of

from w2svd_core.backbones.wan import WanBackbone
from w2svd_core.condition import LENGTH, Condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.roles import Query, SharedModel
from w2svd_core.settings import Recipe

LENGTHS = (3, 5, 2, 5)
SIGMA = torch.tensor([0.9, 0.6, 0.35, 0.1])


def prompts(lengths: tuple[int, ...], seed: int = 0) -> list[Condition]:
    """One row each, as they are."""
    rows = condition_of("t2v", len(lengths), seed=seed).fields["text"]
    return [Condition({"text": row[None, :length]}) for row, length in zip(rows, lengths, strict=True)]


@pytest.fixture
def shared(new_program: Programs, new_recipe: Recipes) -> SharedModel:
    """A tiny Wan whose adapters act."""
    found: SharedModel = new_program(new_recipe(), fresh=False).model
    return found


def filled(rows: list[Condition]) -> Condition:
    return Condition.cat(Condition.filled(rows, ["text"]))


def test_rows_are_filled_and_taken_apart_again() -> None:
    rows = prompts(LENGTHS)
    whole = filled(rows)
    assert whole.ragged and whole.fields[f"{LENGTH}text"].tolist() == list(LENGTHS)
    assert whole.fields["text"].shape[1] == 5 and not whole.fields["text"][2, 2:].any()
    seen: list[int] = []
    for numbers, own in whole.alike():
        assert own.fields.keys() == {"text"}
        for number, text in zip(numbers.tolist(), own.fields["text"], strict=True):
            assert torch.equal(text, rows[number].fields["text"][0])
            seen.append(number)
    assert sorted(seen) == [0, 1, 2, 3] and len(whole.alike()) == 3


def test_rows_of_one_length_stay_as_they_are() -> None:
    rows = prompts((4, 4))
    assert Condition.filled(rows, ["text"]) == rows and not filled(rows).ragged


def test_a_row_without_a_field_is_asked_without_it() -> None:
    with_words = Condition({"text": torch.ones(1, 2, 3), "glyphs": torch.full((1, 4, 3), 2.0)})
    whole = Condition.cat(Condition.filled([with_words, Condition({"text": torch.ones(1, 2, 3)})], ["text", "glyphs"]))
    (none, plain), (both, words) = whole.alike()
    assert none.tolist() == [1] and plain.fields.keys() == {"text"}
    assert both.tolist() == [0] and torch.equal(words.fields["glyphs"], with_words.fields["glyphs"])


def test_lengths_travel_with_their_rows() -> None:
    first, null = filled(prompts((3, 2))), filled(prompts((3, 2)))[1:]
    assert first[[1]].fields[f"{LENGTH}text"].tolist() == [2]
    assert first.instead(null).fields[f"{LENGTH}text"].tolist() == [2, 2]
    dropped = first.where(torch.tensor([True, False]), first.instead(null))
    assert dropped.fields[f"{LENGTH}text"].tolist() == [3, 2]


def test_every_row_answers_as_if_alone(shared: SharedModel) -> None:
    x, rows = points_of("t2v", 4), prompts(LENGTHS)
    with torch.no_grad():
        found = shared.predict("fake", x, SIGMA, filled(rows))
        for number, row in enumerate(rows):
            alone = shared.predict("fake", x[number : number + 1], SIGMA[number : number + 1], row)
            torch.testing.assert_close(found[number : number + 1], alone, atol=1e-6, rtol=1e-5)
        filler = shared.predict("fake", x, SIGMA, Condition({"text": filled(rows).fields["text"]}))
    assert not torch.allclose(found[2], filler[2], atol=1e-4)  # which it is not where filler counts
    assert torch.allclose(found[1], filler[1], atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_scores_of_several_roles_and_their_gradients_are_those_of_single_rows(
    new_program: Programs, new_recipe: Recipes, checkpointing: bool
) -> None:
    shared = new_program(new_recipe(), fresh=False, checkpointing=checkpointing).model
    x, rows, empty = points_of("t2v", 4), prompts(LENGTHS), prompts((1,) * 4, seed=1)
    both = Condition.filled([*rows, *empty], ["text"])
    condition, null = Condition.cat(both[:4]), Condition.cat(both[4:])
    alpha = torch.tensor([0.1, 0.2, 0.3, 0.4])
    queries = [Query("fake", x, SIGMA, condition), Query("real", x, SIGMA, null, alpha)]
    fake, real = shared.predict_x0_together(queries)
    (fake.square().sum() + real.square().sum()).backward()
    parameters = shared.parameters("fake")
    found = {name: p.grad.clone() for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    for number in range(4):
        one = slice(number, number + 1)
        alone = shared.predict_x0("fake", x[one], SIGMA[one], rows[number])
        weak = shared.predict_x0("real", x[one], SIGMA[one], empty[number], alpha[one])
        torch.testing.assert_close(fake[one], alone, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(real[one], weak, atol=1e-6, rtol=1e-5)
        (alone.square().sum() + weak.square().sum()).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, parameters[name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"matching.guidance_scale": 2.0, "adversarial.weight": 0.5, "adversarial.r1": 0.1},
        {"matching.batched_scores": False, "matching.guidance_scale": 2.0},
        {"method": "consistency"},
        {"method": "flow_matching", "train.condition_dropout": 0.5},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()),
)
def test_a_training_runs_and_resumes_on_them_bit_for_bit(
    pristine: nn.Module,
    clips: LatentSet,
    new_recipe: Recipes,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WanBackbone, "check_condition", lambda *_: None)  # Wan's own prompts never come with lengths
    *rows, null = Condition.filled([*prompts(LENGTHS), *prompts((1,), seed=1)], ["text"])
    data = LatentSet(clips.latents[:4], Condition.cat(rows), null, ("a", "b", "c", "d"))
    recipe: Recipe = new_recipe(changes | {"train.batch": 3})
    whole, stopped, resumed = (program_of(recipe, pristine, data) for _ in range(3))
    logs = [whole.round(index) for index in range(3)]
    assert all(torch.isfinite(torch.tensor(value)) for row in logs for value in row.values())
    for index in range(2):
        stopped.round(index)
    resumed.load_tensors(stopped.tensors())
    resumed.round(2)
    assert same(whole.tensors(), resumed.tensors())


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], t) for name, t in expected.items())
