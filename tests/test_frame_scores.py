"""What exact scores say of frames: where they move them, and that they leave an image model's own samples in peace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kind import Programs, Recipes
from test_frame_matching import ON, made, rng
from torch import Tensor
from two_peaks import TwoPeaks

from w2svd_core.condition import Condition


def gaussian_x0(x_t: Tensor, sigma: Tensor, mean: float) -> Tensor:
    """The exact clean sample of data N(mean, 1) in the flow x_t = (1 - sigma) x0 + sigma eps."""
    s = sigma.view(-1, 1, 1, 1, 1)
    gain = (1 - s) / ((1 - s) ** 2 + s**2)
    return mean + gain * (x_t - (1 - s) * mean)


def judged(
    program: Any,
    monkeypatch: pytest.MonkeyPatch,
    fake: Callable[[Tensor, Tensor, Tensor], Tensor],
    real: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Any, Any, Any]:
    """A term, a step, its rollout: a critic's x0 of frames, x_t, sigma, and an image model's of x_t, sigma."""
    term = program.terms["frame_matching"]

    def scores(frames: Tensor, condition: Condition, *place: Any) -> tuple[Tensor, Tensor]:
        sigma, eps = term._noise_level(len(frames), *place), program._noise(frames.shape, *place)
        x_t = program.process.noise(frames, eps, sigma)
        return fake(frames, x_t, sigma), real(x_t, sigma)

    monkeypatch.setattr(term, "causal", False)
    monkeypatch.setattr(term, "_scores", scores)
    return term, *made(program)


def test_sign_frames_go_where_the_image_model_has_its_own(
    new_program: Programs, new_recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students at 2, an image model at 0, exact scores: descending the loss moves every frame to 0."""
    program = new_program(new_recipe(ON | {"frame_matching.frames": 2}))
    x0 = torch.empty(0)  # what the critic knows the mean of

    def critic(_frames: Tensor, x_t: Tensor, sigma: Tensor) -> Tensor:
        return gaussian_x0(x_t, sigma, float(x0.detach().mean()))

    term, step, rollout = judged(program, monkeypatch, critic, lambda x_t, sigma: gaussian_x0(x_t, sigma, 0.0))
    x0 = torch.full(step.x0.shape, 2.0).requires_grad_()
    adam = torch.optim.SGD([x0], lr=4.0 * x0.numel())
    sizes = []
    for index in range(60):
        adam.zero_grad()
        loss = term.loss(type(step)(index, x0, rollout, step.sigma, step.eps, None, {}))
        loss.backward()
        adam.param_groups[0]["lr"] = 0.2 * x0.numel()
        adam.step()
        sizes.append(float(x0.detach().abs().mean()))
    assert sizes[-1] < 0.25 * sizes[0] and (x0.detach().mean((0, 1, 3, 4)).abs() < 0.6).all()


def test_no_gradient_in_the_mean_on_the_image_models_own_samples(
    new_program: Programs, new_recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skewed samples, their exact score, and a critic that is right about them in the mean: nothing to learn. An image
    model of others, or a critic that is off, has a mean of its own."""
    program = new_program(new_recipe(ON | {"frame_matching.frames": 2}))

    def errors(fake: Callable[[Tensor, Tensor, Tensor], Tensor], real: Callable[[Tensor, Tensor], Tensor]) -> float:
        """The mean of the gradient, in its standard errors."""
        with monkeypatch.context() as patch:
            term, step, rollout = judged(program, patch, fake, real)
            found = []
            for index in range(60):
                x0 = TwoPeaks.draw(tuple(step.x0.shape), rng(100 + index)).requires_grad_()
                term.loss(type(step)(index, x0, rollout, step.sigma, step.eps, None, {})).backward()
                assert x0.grad is not None
                found.append(x0.grad[x0.grad != 0])  # of the frames that were drawn
            gradient = torch.cat(found)
            assert len(gradient) > 50_000 and gradient.std() > 0
            return abs(float(gradient.mean() / gradient.std())) * len(gradient) ** 0.5

    own: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda frames, _x_t, _sigma: frames  # noqa: E731
    assert errors(own, TwoPeaks.x0) < 3
    assert errors(own, lambda x_t, sigma: gaussian_x0(x_t, sigma, 0.0)) > 30
    assert errors(lambda frames, _x_t, _sigma: 0.7 * frames, TwoPeaks.x0) > 30
