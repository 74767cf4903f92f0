"""Samplers: the textbook step, and clips that depend on their own seed alone."""

from __future__ import annotations

import pytest
import torch
from kind import Conditions, Models
from torch import Tensor

from w2svd_core.flow import RectifiedFlow, VariancePreserving, sigma_list
from w2svd_core.generation import Way, generate, predictor
from w2svd_core.randomness import noise_of_seeds
from w2svd_core.roles import Role
from w2svd_core.sampling import Sampler, advance, guide, renewed, sample, walk

SHAPE = (16, 3, 4, 4)
SIGMAS = sigma_list(4, 5)


def two(seed: int = 0) -> tuple[Tensor, Tensor]:
    x_t, v = torch.randn(2, 2, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return x_t, v


@pytest.mark.parametrize("step", range(4))
def test_an_euler_step_adds_the_velocity_times_the_step(step: int) -> None:
    x_t, v = two()
    sigma, lower = SIGMAS[step], SIGMAS[step + 1]
    process = RectifiedFlow()
    x0 = process.x0_from_output(x_t, v, sigma)
    found = advance(process, x_t, x0, sigma, lower, "euler", None)
    torch.testing.assert_close(found, x_t + (lower - sigma) * v, atol=1e-5, rtol=1e-5)


def test_partly_fresh_noise_is_still_unit_noise() -> None:
    implied, fresh = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(renewed(implied, fresh, 0), implied) and torch.equal(renewed(implied, fresh, 1), fresh)
    assert renewed(implied, fresh, 0.6).std() == pytest.approx(1, abs=0.02)


def test_an_euler_step_of_a_variance_preserving_process_is_ddim() -> None:
    x_t, eps = two()
    found = advance(
        VariancePreserving(), x_t, VariancePreserving().x0_from_output(x_t, eps, 0.8), 0.8, 0.6, "euler", None
    )
    expected = 0.8 * (x_t - 0.8 * eps) / 0.6 + 0.6 * eps  # alpha is .6 at sigma .8, and .8 at .6
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_renoising_step_takes_fresh_noise_and_forgets_the_old() -> None:
    x0, fresh = two()
    found = advance(RectifiedFlow(), torch.full_like(x0, 9.0), x0, 0.9, 0.5, "renoise", fresh)
    torch.testing.assert_close(found, 0.5 * x0 + 0.5 * fresh, atol=0, rtol=0)
    with pytest.raises(ValueError, match="fresh noise"):
        advance(RectifiedFlow(), x0, x0, 0.9, 0.5, "renoise", None)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_the_last_step_gives_the_predicted_clean_sample(sampler: Sampler) -> None:
    x_t, v = two()
    reached, visited = walk(lambda x, s: x - s * v, RectifiedFlow(), lambda i: x_t, SIGMAS, sampler)
    assert torch.equal(reached, visited[-1]) and len(visited) == 4


def test_a_perfect_model_is_sampled_exactly() -> None:
    x_t, x0 = two()
    found = sample(lambda x, s: x0, RectifiedFlow(), lambda i: x_t, SIGMAS, "renoise")
    assert torch.equal(found, x0)


def test_guidance_of_one_is_none_and_of_zero_is_the_null_prompt() -> None:
    cond, uncond = two()
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond, atol=1e-6, rtol=1e-6)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 3.0), 3 * cond - 2 * uncond, atol=1e-5, rtol=1e-5)


def test_noise_of_a_seed_does_not_know_its_neighbours() -> None:
    several, alone = noise_of_seeds(SHAPE, [5, 6, 7], 2), noise_of_seeds(SHAPE, [6], 2)
    assert torch.equal(several[1], alone[0])
    assert not torch.equal(alone, noise_of_seeds(SHAPE, [6], 3))


@pytest.mark.parametrize("role", ["teacher", "generator"])
@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_the_same_seed_gives_the_same_clip_whatever_the_batch(
    new_shared: Models, texts: Conditions, role: Role, sampler: Sampler
) -> None:
    model, text, null = new_shared(), texts(5), texts(1, seed=9)
    way, seeds = Way(role, SIGMAS, sampler, guidance_scale=2.0), [3, 1, 4, 15, 9]
    whole = generate(model, way, text, null, SHAPE, seeds)
    parts = generate(model, way, text, null, SHAPE, seeds, batch=2)
    alone = generate(model, way, text[3:4], null, SHAPE, seeds[3:4])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, whole[3:4], atol=1e-5, rtol=1e-5)
    assert torch.equal(whole, generate(model, way, text, null, SHAPE, seeds))
    assert not torch.allclose(whole, generate(model, way, text, null, SHAPE, [8] * 5), atol=0.1)


def test_a_full_copy_is_sampled_with_guidance(new_shared: Models, texts: Conditions) -> None:
    full, way = new_shared(student_rank=0), Way("generator", SIGMAS, "euler", 2.0)
    found = generate(full, way, texts(2), texts(1, seed=9), SHAPE, [1, 2])
    same = Way("teacher", SIGMAS, "euler", 2.0)  # an untrained copy is the teacher
    expected = generate(full, same, texts(2), texts(1, seed=9), SHAPE, [1, 2])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_guided_prediction_is_the_formula(new_shared: Models, texts: Conditions) -> None:
    model, text, null = new_shared(), texts(2), texts(1, seed=9)
    x_t, _ = two()
    with torch.no_grad():
        found = predictor(model, Way("teacher", SIGMAS, "euler", 3.0), text, null)(x_t, 0.7)
        cond = model.predict_x0("teacher", x_t, 0.7, text)
        uncond = model.predict_x0("teacher", x_t, 0.7, null.expand(2))
    torch.testing.assert_close(found, uncond + 3 * (cond - uncond), atol=1e-5, rtol=1e-5)
