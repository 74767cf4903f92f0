"""Noising processes, sigma lists and score times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from w2svd_core.flow import (
    RectifiedFlow,
    VariancePreserving,
    score_times,
    shift_sigma,
    sigma_list,
)

PROCESSES = [
    RectifiedFlow(),
    VariancePreserving("epsilon"),
    VariancePreserving("v"),
    VariancePreserving("x0"),
]
LEVELS = torch.tensor([0.05, 0.4, 0.95])


def pair() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 2, 4, 3, 3, generator=rng)
    return x0, eps


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_perfect_output_gives_back_the_clean_sample_and_the_noise(process: RectifiedFlow) -> None:
    x0, eps = pair()
    x_t = process.noise(x0, eps, LEVELS)
    found = process.x0_from_output(x_t, process.target(x0, eps, LEVELS), LEVELS)
    torch.testing.assert_close(found, x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(process.eps_from_x0(x_t, x0, LEVELS), eps, atol=1e-4, rtol=1e-4)


def test_a_variance_preserving_process_keeps_unit_variance() -> None:
    x0, eps = torch.randn(2, 20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for sigma in (0.1, 0.5, 0.9):
        assert float(VariancePreserving().noise(x0, eps, sigma).var()) == pytest.approx(1.0, abs=0.05)


def test_an_epsilon_model_at_pure_noise_stays_finite() -> None:
    x0, eps = pair()
    assert VariancePreserving("epsilon").x0_from_output(eps, x0, 1.0).isfinite().all()


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_level_for_each_frame_acts_on_its_own_frame(process: RectifiedFlow) -> None:
    x0, eps = pair()
    levels = torch.tensor([[0.1, 0.9]]).expand(3, 2)  # b f
    noised = process.noise(x0.transpose(1, 2), eps.transpose(1, 2), levels)  # now b c=4 f=2
    for frame, sigma in enumerate((0.1, 0.9)):
        alone = process.noise(x0[:, frame, :, None], eps[:, frame, :, None], sigma)
        torch.testing.assert_close(noised[:, :, frame], alone[:, :, 0], atol=0, rtol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_half_precision_is_widened_and_double_is_kept(process: RectifiedFlow) -> None:
    x0, eps = pair()
    assert process.noise(x0.bfloat16(), eps.bfloat16(), LEVELS).dtype == torch.float32
    assert process.x0_from_output(x0.double(), eps.double(), LEVELS).dtype == torch.float64


def test_four_steps_at_shift_five_are_the_published_list() -> None:
    assert sigma_list(4, 5) == pytest.approx((1.0, 0.9375, 5 / 6, 0.625, 0.0), abs=1e-12)
    assert sigma_list(4, 5)[0] == 1.0 and sigma_list(4, 5)[-1] == 0.0


def test_a_shift_keeps_the_ends_and_its_inverse_undoes_it() -> None:
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift_sigma(sigma, 3.0)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted[1:-1] > sigma[1:-1]).all()
    torch.testing.assert_close(shift_sigma(shifted, 1 / 3), sigma)
    torch.testing.assert_close(shift_sigma(sigma, 1.0), sigma, atol=0, rtol=0)


def test_uniform_score_times_are_uniform_and_clamped() -> None:
    times = score_times(20_000, generator=torch.Generator().manual_seed(0))
    assert float(times.min()) == pytest.approx(0.02) and float(times.max()) == pytest.approx(0.98)
    assert float(times.mean()) == pytest.approx(0.5, abs=0.01)
    assert float((times < 0.25).float().mean()) == pytest.approx(0.25, abs=0.015)


def test_shifted_score_times_follow_the_shift_law() -> None:
    times = score_times(20_000, law="shift", shift=5.0, generator=torch.Generator().manual_seed(0))
    assert float(times.median()) == pytest.approx(5 / 6, abs=0.01)  # the shifted median of U(0, 1)
    assert float(times.max()) == pytest.approx(0.98)


def test_score_times_are_a_function_of_their_generator() -> None:
    first, again = (score_times(5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
