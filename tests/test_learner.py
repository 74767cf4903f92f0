"""One optimizer step and everything around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from w2svd_core.errors import UserError
from w2svd_core.learner import Learner, average_age, lr_schedule
from w2svd_core.settings import Optimizer


def learner(**changes: Any) -> Learner:
    """Two weights of 4 and 3 numbers, plain AdamW at 0.1."""
    rng = torch.Generator().manual_seed(0)
    weights = {name: nn.Parameter(torch.randn(size, generator=rng)) for name, size in (("a", 4), ("b", 3))}
    settings: dict[str, Any] = {
        "schedule": lr_schedule("constant", 0, 1),
        "clip_norm": 0.0,
        "max_nonfinite": 3,
    }
    return Learner("student", weights, Optimizer(lr=0.1), **(settings | changes))


def loss_of(held: Learner, scale: float = 1.0) -> torch.Tensor:
    return scale * sum((p**2).sum() for p in held.parameters.values())  # type: ignore[return-value]


def copies(held: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in held.tensors().items()}


def test_an_update_goes_down_the_gradient_and_leaves_none_behind() -> None:
    held = learner()
    first = float(loss_of(held).detach())
    logs = [held.update(loss_of(held)) for _ in range(20)]
    assert logs[0]["student/loss"] == pytest.approx(first) and logs[-1]["student/loss"] < 0.1 * first
    assert held.updates == 20 and logs[0]["student/skipped"] == 0.0
    assert all(p.grad is None for p in held.parameters.values())


def test_a_zero_gradient_moves_nothing() -> None:
    held = learner()
    before = copies(held)
    logs = held.update(loss_of(held, 0.0))
    assert logs["student/gradient_norm"] == 0.0
    assert all(torch.equal(before[f"weight/{n}"], p) for n, p in held.parameters.items())


def test_the_gradient_is_clipped_to_the_norm_and_logged_as_it_was() -> None:
    held, seen = learner(clip_norm=0.5), []
    held.adam.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad for p in held.parameters.values()]).norm())  # type: ignore[misc]
    )
    norm = 2 * float(torch.cat([p.detach() for p in held.parameters.values()]).norm())
    logs = held.update(loss_of(held))
    assert logs["student/gradient_norm"] == pytest.approx(norm, rel=1e-5) and norm > 0.5
    assert float(seen[0]) == pytest.approx(0.5, rel=1e-4)
    held.update(loss_of(held, 1e-3))  # a small gradient is left as it is
    assert float(seen[1]) < 0.01


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_nonfinite_update_is_counted_and_changes_nothing(bad: float) -> None:
    held = learner(ema=0.9)
    held.update(loss_of(held))
    before = copies(held)
    logs = held.update(loss_of(held, bad))
    after = copies(held)
    assert logs["student/skipped"] == 1.0 and held.nonfinite_in_a_row == 1
    assert all(torch.equal(before[name], after[name]) for name in before if name != "count")
    held.update(loss_of(held))
    assert held.nonfinite_in_a_row == 0 and held.updates == 2


def test_a_nonfinite_gradient_of_a_finite_loss_is_skipped() -> None:
    held = learner()
    before = copies(held)
    weight = held.parameters["a"]
    logs = held.update(loss_of(held) + (weight * 0).sqrt().sum())  # the square root's slope at 0 has no bound
    assert logs["student/skipped"] == 1.0 and torch.equal(before["weight/a"], weight)


def test_too_many_nonfinite_updates_in_a_row_end_the_run_in_one_sentence() -> None:
    held = learner(max_nonfinite=3)
    held.update(loss_of(held))
    for _ in range(2):
        held.update(loss_of(held, torch.nan))
    with pytest.raises(
        UserError, match=r"the student had 3 non-finite updates in a row after update 1; start again with a lower"
    ):
        held.update(loss_of(held, torch.nan))


def test_the_average_follows_the_weights() -> None:
    held, mean = learner(ema=0.9), {}
    for update in range(1, 40):
        mean = {name: t.clone() for name, t in held.average.items()}
        held.update(loss_of(held))
        decay = min(0.9, (1 + update) / (10 + update))
        for name, weight in held.parameters.items():
            expected = decay * mean[name] + (1 - decay) * weight.detach()
            torch.testing.assert_close(held.average[name], expected, atol=1e-6, rtol=1e-6)
    assert held.learned() is held.average


def test_an_average_that_comes_along_is_as_old_as_it_was() -> None:
    held, other = learner(ema=0.9), learner(ema=0.9)
    for _ in range(200):
        held.update(loss_of(held))
    other.begin_with(held.parameters, held.average, held.age)
    assert not other.tensors()["count"][0]  # its optimizer and schedule begin anew
    before = {name: mean.clone() for name, mean in other.average.items()}
    other.update(loss_of(other))
    for name, weight in other.parameters.items():
        torch.testing.assert_close(other.average[name], 0.9 * before[name] + 0.1 * weight.detach())


def test_a_checkpoint_of_an_older_version_has_an_average_as_old_as_its_updates() -> None:
    assert average_age(torch.tensor([7, 0])) == 7 and average_age(torch.tensor([3, 1, 120])) == 120


def test_without_an_average_the_weights_are_what_is_learned() -> None:
    held = learner()
    assert held.average == {} and torch.equal(held.learned()["a"], held.parameters["a"])
    assert not held.learned()["a"].requires_grad


def test_the_schedules() -> None:
    rise = lr_schedule("constant", 4, 100)
    assert [rise(i) for i in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = lr_schedule("cosine", 0, 10)
    assert cosine(0) == 1.0 and cosine(5) == pytest.approx(0.5) and cosine(10) == pytest.approx(0.0, abs=1e-12)
    assert cosine(50) == pytest.approx(0.0, abs=1e-12)  # beyond the end it stays there
    values = [lr_schedule("cosine", 3, 20)(i) for i in range(20)]
    assert max(values) == max(values[2:4]) and all(0 <= v <= 1 for v in values)


def test_the_schedule_reaches_the_optimizer() -> None:
    held, rates = learner(schedule=lr_schedule("cosine", 2, 4)), []
    held.adam.register_step_pre_hook(lambda *_: rates.append(held.adam.param_groups[0]["lr"]))
    for _ in range(4):
        held.update(loss_of(held))
    schedule = lr_schedule("cosine", 2, 4)
    assert rates == pytest.approx([0.1 * schedule(i) for i in range(4)])


def test_reduce_sees_every_gradient_before_the_norm() -> None:
    held = learner(reduce=lambda gradient: gradient * 0)
    before = copies(held)
    assert held.update(loss_of(held))["student/gradient_norm"] == 0.0
    assert torch.equal(before["weight/a"], held.parameters["a"])


@pytest.mark.parametrize("updates", [0, 3])
def test_tensors_round_trip_exactly(updates: int) -> None:
    held, other = learner(ema=0.9), learner(ema=0.9)
    for _ in range(updates):
        held.update(loss_of(held))
    if updates:
        held.update(loss_of(held, torch.nan))
    other.load_tensors(copies(held))
    for _ in range(3):
        assert held.update(loss_of(held)) == other.update(loss_of(other))
    found, expected = other.tensors(), held.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_scaled_loss_moves_the_weights_as_a_plain_one_does() -> None:
    plain, scaled = learner(clip_norm=0.5), learner(clip_norm=0.5, scale_loss=True)
    for _ in range(3):
        logs = [held.update(loss_of(held)) for held in (plain, scaled)]
        assert logs[0] == pytest.approx(logs[1])
    for one, other in zip(plain.parameters.values(), scaled.parameters.values(), strict=True):
        assert torch.equal(one, other)  # the scale is a power of two, so nothing is rounded


def test_the_scale_halves_after_an_overflow_and_comes_back_with_a_checkpoint() -> None:
    held, again = learner(scale_loss=True), learner(scale_loss=True)
    held.update(loss_of(held))
    first = held.scaler.get_scale()
    assert held.update(loss_of(held, torch.inf))["student/skipped"] == 1.0
    assert held.scaler.get_scale() == first / 2
    held.update(loss_of(held))
    again.load_tensors(copies(held))
    assert again.scaler.get_scale() == first / 2
    for one in (held, again):
        one.update(loss_of(one))
    assert all(torch.equal(held.parameters[name], again.parameters[name]) for name in held.parameters)


def test_a_scaled_loss_saves_gradients_that_float16_would_lose() -> None:
    kept = []
    for scale_loss in (False, True):
        held = learner(scale_loss=scale_loss)
        before = held.parameters["a"].detach().clone()
        held.update(1e-8 * held.parameters["a"].half().sum().float())  # 1e-8 is nothing in float16
        kept.append(bool((held.parameters["a"] != before).any()))
    assert kept == [False, True]
