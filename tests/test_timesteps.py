"""Noise levels of models that were trained on whole timesteps, and the conversions at every one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from w2svd_core.flow import Timesteps, VariancePreserving
from w2svd_core.sampling import sample

LAWS: tuple[Any, ...] = ("linear", "scaled_linear")


@pytest.mark.parametrize("law", LAWS)
def test_levels_are_diffusers(law: Any) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=law).alphas_cumprod.double()
    levels = Timesteps(law).levels
    torch.testing.assert_close(levels, (1 - theirs).sqrt(), atol=2e-6, rtol=2e-6)
    assert (levels.diff() > 0).all() and Timesteps(law).highest == levels[-1]


def test_stable_diffusion_keeps_a_signal_at_its_last_step() -> None:
    assert Timesteps().highest == pytest.approx((1 - 0.00466) ** 0.5, abs=1e-5)  # alphas_cumprod[999] of SD 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("law", LAWS)
def test_each_timestep_is_found_by_its_level(law: Any, dtype: torch.dtype) -> None:
    steps = Timesteps(law)
    assert torch.equal(steps.nearest(steps.levels.to(dtype)), torch.arange(1000))
    between = (steps.levels[:-1] + steps.levels[1:]) / 2
    assert torch.equal(steps.nearest(between - 1e-7), torch.arange(999))
    assert torch.equal(steps.nearest(between + 1e-7), torch.arange(1, 1000))
    assert steps.nearest(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("law", LAWS)
def test_conversions_are_exact_at_every_level(law: Any, prediction: Any) -> None:
    steps = Timesteps(law)
    process = VariancePreserving(prediction, highest=steps.highest)
    x0, eps = torch.randn(2, 1000, 2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = steps.levels
    x_t = process.noise(x0, eps, sigma)
    alpha = (1 - sigma.square()).sqrt().view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(x_t, alpha * x0 + sigma.view(-1, 1, 1, 1, 1) * eps, atol=1e-12, rtol=0)
    found = process.x0_from_output(x_t, process.target(x0, eps, sigma), sigma)
    torch.testing.assert_close(found, x0, atol=1e-11, rtol=0)
    torch.testing.assert_close(process.eps_from_x0(x_t, x0, sigma), eps, atol=1e-11, rtol=0)
    single = process.noise(x0.float(), eps.float(), sigma.float())
    again = process.x0_from_output(single, process.target(x0.float(), eps.float(), sigma.float()), sigma.float())
    torch.testing.assert_close(again, x0.float(), atol=5e-5, rtol=0)


def test_above_the_last_level_is_the_last_level() -> None:
    highest = Timesteps().highest
    process = VariancePreserving(highest=highest)
    x0, eps = torch.randn(2, 3, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for call in (process.noise, process.x0_from_output, process.eps_from_x0, process.target):
        assert torch.equal(call(x0, eps, 1.0), call(x0, eps, highest))
    assert not torch.equal(VariancePreserving().noise(x0, eps, 1.0), process.noise(x0, eps, 1.0))


def denoiser(x_t: Tensor, time: int | Tensor) -> Tensor:
    """Some smooth function of both, in place of a model."""
    return torch.tanh(0.7 * x_t + 0.3 * torch.sin(torch.as_tensor(time).double() / 300).to(x_t.dtype))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_euler_path_is_diffusers_ddim(law: Any, spacing: str) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=law, clip_sample=False, set_alpha_to_one=True,
        timestep_spacing=spacing,
    )  # fmt: skip
    count = 8 if spacing != "linspace" else 1000  # its step back is always 1000 / n
    scheduler.set_timesteps(count)
    noise = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = noise
    for time in scheduler.timesteps:
        theirs = scheduler.step(denoiser(theirs, time), time, theirs, eta=0.0).prev_sample
    assert torch.allclose(ours(Timesteps(law), scheduler.timesteps, noise), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("law", LAWS)
def test_the_euler_path_is_diffusers_euler(law: Any) -> None:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=law, timestep_spacing="leading"
    )
    scheduler.set_timesteps(8)
    noise = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = noise * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(theirs, time)
        theirs = scheduler.step(denoiser(scaled, time), time, theirs).prev_sample
    torch.testing.assert_close(ours(Timesteps(law), scheduler.timesteps.long(), noise), theirs, atol=1e-4, rtol=1e-4)


def ours(steps: Timesteps, times: Tensor, noise: Tensor) -> Tensor:
    """The same path by our sampler, over the levels of those timesteps."""
    process = VariancePreserving(highest=steps.highest)
    sigmas = (*steps.levels[times].tolist(), 0.0)

    def predict(x_t: Tensor, sigma: float) -> Tensor:
        time = steps.nearest(torch.tensor([sigma], dtype=torch.float64))
        return process.x0_from_output(x_t, denoiser(x_t, int(time)), sigma)

    return sample(predict, process, lambda step: noise, sigmas, "euler")
