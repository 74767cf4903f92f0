"""Samplers over explicit sigma lists, the same for teacher and student.

Euler follows the probability-flow ODE: the next point holds the noise that the present one implies. Re-noising (DMD2,
arXiv 2405.14867, 4.4; ComfyUI calls it `lcm`) forgets that noise and draws a fresh one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .flow import Process
from .sigmas import check_sigmas

Sampler = Literal["renoise", "euler"]
PredictX0 = Callable[[Tensor, float], Tensor]  # (x_t `b c f h w`, sigma) -> x0
NoiseOfStep = Callable[[int], Tensor]  # step -> unit noise `b c f h w`; step 0 is where the path begins


def advance(
    process: Process,
    x_t: Tensor,
    x0: Tensor,
    sigma: float,
    next_sigma: float,
    sampler: Sampler,
    fresh: Tensor | None,
) -> Tensor:
    """The point at `next_sigma` after the model has said x0 at `sigma`; `fresh` noise is for the re-noising sampler."""
    if next_sigma == 0:
        return x0
    if sampler == "euler":
        return process.noise(x0, process.eps_from_x0(x_t, x0, sigma), next_sigma)
    if fresh is None:
        raise ValueError("the re-noising sampler needs fresh noise at every step")
    return process.noise(x0, fresh, next_sigma)


def renewed(implied: Tensor, fresh: Tensor, eta: float) -> Tensor:
    """Unit noise between what a point holds (eta 0, the Euler step) and fresh (eta 1, the re-noising one)."""
    return math.sqrt(1 - eta**2) * implied + eta * fresh


def walk(
    predict_x0: PredictX0,
    process: Process,
    noise: NoiseOfStep,
    sigmas: Sequence[float],
    sampler: Sampler,
    steps: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Take the first `steps` steps (default: all) of the sampler's path from pure noise.

    Returns:
        The point reached, and the x0 that was predicted at each step.

    Raises:
        ValueError: the sigmas do not fall from at most 1 to a last 0.
    """
    check_sigmas(sigmas)
    steps = len(sigmas) - 1 if steps is None else steps
    x_t = noise(0)
    visited: list[Tensor] = []
    for i in range(steps):
        x0 = predict_x0(x_t, sigmas[i])
        visited.append(x0)
        fresh = noise(i + 1) if sampler == "renoise" and sigmas[i + 1] > 0 else None
        x_t = advance(process, x_t, x0, sigmas[i], sigmas[i + 1], sampler, fresh)
    return x_t, visited


@torch.no_grad()
def sample(
    predict_x0: PredictX0, process: Process, noise: NoiseOfStep, sigmas: Sequence[float], sampler: Sampler
) -> Tensor:
    """Clean latents `b c f h w`. With noise that is a function of the seed, the same seed gives the same clip."""
    return walk(predict_x0, process, noise, sigmas, sampler)[0]


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """u + g (c - u): 1.0 means none (arXiv 2207.12598 with g = 1 + w)."""
    return uncond + scale * (cond - uncond)
