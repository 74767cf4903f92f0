"""Backward simulation is the sampler's own path, and the critic sees its steps as often as they are exits."""

from __future__ import annotations

import pytest
import torch
from kind import Conditions, Models
from torch import Tensor

from w2svd_core.condition import Condition
from w2svd_core.errors import UserError
from w2svd_core.flow import RectifiedFlow, sigma_list
from w2svd_core.generation import Way, generate
from w2svd_core.randomness import generator, noise_of_seeds, shuffled_rows
from w2svd_core.roles import SharedModel
from w2svd_core.rollout import Rollout, VisitPool, draw_exit, exit_law, noise_data, simulate
from w2svd_core.sampling import Sampler, sample, walk

SHAPE, SEEDS, SIGMAS = (16, 3, 4, 4), (3, 8), sigma_list(4, 5)


def noise(step: int) -> Tensor:
    return noise_of_seeds(SHAPE, SEEDS, step)


class Watched:
    """A student that remembers what it was asked and what it said."""

    def __init__(self, model: SharedModel, condition: Condition) -> None:
        self.model, self.condition = model, condition
        self.inputs: list[Tensor] = []
        self.sigmas: list[float] = []
        self.said: list[Tensor] = []

    def __call__(self, x_t: Tensor, sigma: float) -> Tensor:
        self.inputs.append(x_t)
        self.sigmas.append(sigma)
        self.said.append(self.model.predict_x0("generator", x_t, sigma, self.condition))
        return self.said[-1]


def run_to(step: int, sampler: Sampler, student: Watched) -> Rollout:
    return simulate(student, RectifiedFlow(), noise, SIGMAS, sampler, step, student.condition)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
@pytest.mark.parametrize("step", range(4))
def test_backward_simulation_is_the_samplers_own_path(
    new_shared: Models, texts: Conditions, sampler: Sampler, step: int
) -> None:
    model = new_shared()
    path, student = Watched(model, texts(2)), Watched(model, texts(2))
    clip = sample(path, RectifiedFlow(), noise, SIGMAS, sampler)
    rollout = run_to(step, sampler, student)
    assert torch.equal(rollout.x_t, path.inputs[step])
    assert rollout.sigma == path.sigmas[step] and rollout.step == step
    assert len(rollout.visited) == step
    assert all(torch.equal(a, b) for a, b in zip(rollout.visited, path.said, strict=False))
    assert torch.equal(walk(path, RectifiedFlow(), noise, SIGMAS, sampler, steps=step)[0], rollout.x_t)
    if step == 3:  # one more call of the student is the clip
        with torch.no_grad():
            assert torch.equal(student(rollout.x_t, rollout.sigma), clip)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_backward_simulation_ends_in_the_clip_that_a_user_gets(
    new_shared: Models, texts: Conditions, sampler: Sampler
) -> None:
    model, way = new_shared(), Way("generator", SIGMAS, sampler)
    student = Watched(model, texts(2))
    rollout = run_to(3, sampler, student)
    with torch.no_grad():
        last = student(rollout.x_t, rollout.sigma)
    assert torch.equal(last, generate(model, way, texts(2), texts(1, seed=9), SHAPE, SEEDS))


@pytest.mark.parametrize("step", range(4))
def test_a_simulation_stops_at_its_exit(new_shared: Models, texts: Conditions, step: int) -> None:
    student = Watched(new_shared(), texts(2))
    rollout = run_to(step, "renoise", student)
    assert len(student.inputs) == step  # exactly `step` model calls
    assert not rollout.x_t.requires_grad and not any(x0.requires_grad for x0 in rollout.visited)


def test_noised_data_is_the_clip_at_the_exits_level(texts: Conditions) -> None:
    data = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    rollout = noise_data(RectifiedFlow(), data, noise(0), SIGMAS, 2, texts(2))
    s = SIGMAS[2]
    torch.testing.assert_close(rollout.x_t, (1 - s) * data + s * noise(0), atol=1e-6, rtol=1e-6)
    assert rollout.visited == () and rollout.data is data and rollout.sigma == s


def chi_square(counts: Tensor, law: Tensor) -> float:
    expected = law * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_exits_follow_their_law() -> None:
    exits = torch.tensor([draw_exit(4, generator(0, index, "exit")) for index in range(4000)])
    assert chi_square(torch.bincount(exits, minlength=4), exit_law(4)) < 16.3  # p = .001 at 3 degrees


def test_visited_draws_follow_the_exit_law_not_the_visits(texts: Conditions) -> None:
    pool = VisitPool(4, rows=64)
    for index in range(200):  # every rollout visits step 0, a quarter of them step 3
        for step in range(draw_exit(4, generator(0, index, "exit")) + 1):
            pool.add(step, torch.full((2, 1, 1, 1, 1), float(step)), texts(2))
    x0, condition = pool.draw(4000, generator(1))
    assert x0.shape == (4000, 1, 1, 1, 1) and len(condition) == 4000
    assert chi_square(torch.bincount(x0.flatten().long(), minlength=4), exit_law(4)) < 16.3


def test_the_pool_drops_the_oldest_and_keeps_samples_with_their_conditions() -> None:
    pool = VisitPool(2, rows=3)
    for value in range(5):
        rows = torch.full((1, 1, 1, 1, 1), float(value))
        pool.add(0, rows, Condition({"text": rows.view(1, 1, 1) * 10}))
    x0, condition = pool.draw(300, generator(0))
    assert set(x0.flatten().tolist()) == {2.0, 3.0, 4.0}
    assert torch.equal(condition.fields["text"].flatten(), 10 * x0.flatten())


def test_a_draw_from_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        VisitPool(4, rows=2).draw(1, generator(0))


def test_the_pool_holds_no_graph(texts: Conditions) -> None:
    pool = VisitPool(1, rows=2)
    pool.add(0, torch.ones(2, 1, 1, 1, 1, requires_grad=True) * 2, texts(2))
    assert not pool.draw(2, generator(0))[0].requires_grad


def test_a_pool_comes_back_as_it_was(texts: Conditions) -> None:
    pool, again = VisitPool(3, rows=4), VisitPool(3, rows=4)
    for step in (0, 2):
        pool.add(step, torch.randn(3, *SHAPE), texts(3, seed=step))
    again.load_tensors(pool.tensors(), torch.device("cpu"))
    assert again.tensors().keys() == pool.tensors().keys()
    (x0, condition), (x0_again, condition_again) = (p.draw(20, generator(4)) for p in (pool, again))
    assert torch.equal(x0, x0_again)
    assert torch.equal(condition.fields["text"], condition_again.fields["text"])


def test_a_pool_lies_in_the_machines_memory_and_is_drawn_onto_the_models_device(texts: Conditions) -> None:
    pool, away = VisitPool(2, rows=4), VisitPool(2, rows=4)
    pool.add(1, torch.randn(3, *SHAPE), texts(3))
    away.load_tensors(pool.tensors(), torch.device("meta"))
    assert {tensor.device.type for tensor in away.tensors().values()} == {"cpu"}
    x0, condition = away.draw(2, generator(0))
    assert x0.is_meta and condition.fields["text"].is_meta


def test_the_data_order_is_a_function_of_the_place() -> None:
    whole = shuffled_rows(7, 0, 30, seed=3)
    assert [shuffled_rows(7, start, 1, seed=3)[0] for start in range(30)] == whole
    assert all(sorted(whole[i : i + 7]) == list(range(7)) for i in (0, 7, 14, 21))
    assert whole[:7] != whole[7:14]


def test_samples_that_are_not_finite_stay_out_of_the_pool(texts: Conditions) -> None:
    pool, rows = VisitPool(2, rows=8), torch.ones(3, 1, 1, 1, 1)
    rows[1] = torch.nan
    assert pool.add(0, rows, texts(3)) == 1
    x0, condition = pool.draw(50, generator(0))
    assert x0.isfinite().all() and len(x0) == len(condition) == 50
    assert not any(torch.equal(row, texts(3).fields["text"][1]) for row in condition.fields["text"])


def test_a_pool_without_a_finite_sample_says_so(texts: Conditions) -> None:
    pool = VisitPool(2, rows=8)
    pool.add(0, torch.full((2, 1, 1, 1, 1), torch.inf), texts(2))
    with pytest.raises(UserError, match="every sample of the student is non-finite"):
        pool.draw(1, generator(0))
