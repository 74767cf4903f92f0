"""Noising processes, sigma lists and score times: pure functions of tensors, in float32 or better.

Between modules everything is x0-space. A `Process` turns a model's output into x0 and back, so that an objective serves
velocity models (Wan, HunyuanVideo, Cosmos) and noise models (AnimateDiff, image UNets) alike.

Sigma is the noise level in [0, 1]: 1 is pure noise, 0 is data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from .numbers import wide

Prediction = Literal["epsilon", "v", "x0"]
ScoreLaw = Literal["uniform", "shift"]


def per_sample(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Sigma of shape () or (B,), or (B, F) for a level per frame, viewed so that it broadcasts against `b c f h w`."""
    sigma = torch.as_tensor(sigma, dtype=wide(like).dtype, device=like.device)
    if sigma.ndim == 2:  # b f -> b 1 f 1 1
        return sigma.view(sigma.shape[0], 1, sigma.shape[1], *[1] * (like.ndim - 3))
    return sigma.view(-1, *[1] * (like.ndim - 1))


class Process(Protocol):
    """How data become noise, and what a model's output means. All tensors `b c f h w`; sigma () or (B,) or (B, F)."""

    def noise(self, x0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
        """x_t of x0 and unit noise."""
        ...

    def x0_from_output(self, x_t: Tensor, output: Tensor, sigma: Tensor | float) -> Tensor:
        """The clean sample that the model's output stands for."""
        ...

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, sigma: Tensor | float) -> Tensor:
        """The noise that x_t holds if its clean sample is x0."""
        ...

    def target(self, x0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
        """What the model should have put out."""
        ...


@dataclass(frozen=True)
class RectifiedFlow:
    """x_t = (1 - sigma) x0 + sigma eps; the model predicts v = eps - x0 (arXiv 2209.03003; Wan and its kin)."""

    def noise(self, x0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
        s = per_sample(sigma, x0)
        return (1 - s) * wide(x0) + s * wide(eps)

    def x0_from_output(self, x_t: Tensor, output: Tensor, sigma: Tensor | float) -> Tensor:
        return wide(x_t) - per_sample(sigma, x_t) * wide(output)

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, sigma: Tensor | float) -> Tensor:
        s = per_sample(sigma, x_t)
        return (wide(x_t) - (1 - s) * wide(x0)) / s

    def target(self, x0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
        return wide(eps) - wide(x0)


@dataclass(frozen=True)
class VariancePreserving:
    """x_t = alpha x0 + sigma eps, alpha^2 + sigma^2 = 1 (arXiv 2006.11239).

    v = alpha eps - sigma x0 (arXiv 2202.00512).

    Attributes:
        prediction: what the model puts out.
        floor: the smallest alpha (or sigma) that is divided by; an epsilon model knows nothing of x0 at sigma 1.
        highest: the last level of the model's training, which stands for all above it.
    """

    prediction: Prediction = "epsilon"
    floor: float = 1e-4
    highest: float = 1.0

    def _rates(self, sigma: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        s = per_sample(sigma, like).clamp(max=self.highest)
        return ((1 - s) * (1 + s)).sqrt(), s

    def noise(self, x0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
        a, s = self._rates(sigma, x0)
        return a * wide(x0) + s * wide(eps)

    def x0_from_output(self, x_t: Tensor, output: Tensor, sigma: Tensor | float) -> Tensor:
        a, s = self._rates(sigma, x_t)
        if self.prediction == "x0":
            return wide(output)
        if self.prediction == "v":
            return a * wide(x_t) - s * wide(output)
        return (wide(x_t) - s * wide(output)) / a.clamp(min=self.floor)

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, sigma: Tensor | float) -> Tensor:
        a, s = self._rates(sigma, x_t)
        return (wide(x_t) - a * wide(x0)) / s.clamp(min=self.floor)

    def target(self, x0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
        a, s = self._rates(sigma, x0)
        if self.prediction == "x0":
            return wide(x0)
        if self.prediction == "v":
            return a * wide(eps) - s * wide(x0)
        return wide(eps)


@dataclass(frozen=True)
class Timesteps:
    """The noise levels of a model that was trained on whole timesteps (arXiv 2006.11239; Stable Diffusion's numbers).

    Attributes:
        law: linear = betas evenly spaced; scaled_linear = their roots are.
        first, last: of the betas.
        count: how many there are.
    """

    law: Literal["linear", "scaled_linear"] = "scaled_linear"
    first: float = 0.00085
    last: float = 0.012
    count: int = 1000

    @cached_property
    def levels(self) -> Tensor:
        """Sigma of each timestep, ascending, float64."""
        power = 2.0 if self.law == "scaled_linear" else 1.0
        ends = self.first ** (1 / power), self.last ** (1 / power)
        betas = torch.linspace(*ends, self.count, dtype=torch.float64) ** power
        return (1 - (1 - betas).cumprod(0)).sqrt()

    @property
    def highest(self) -> float:
        """Sigma of the last timestep; a signal of alpha is left in it."""
        return float(self.levels[-1])

    def nearest(self, sigma: Tensor) -> Tensor:
        """The timestep whose level is nearest to each sigma, int64."""
        levels = self.levels.to(sigma.device)
        above = torch.bucketize(sigma.double(), levels).clamp(1, self.count - 1)
        nearer_below = sigma - levels[above - 1] < levels[above] - sigma
        return above - nearer_below.long()


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """sigma' = s sigma / (1 + (s - 1) sigma): more time at high noise for s > 1 (arXiv 2403.03206, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_list(steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """`steps + 1` descending levels from 1 to 0, evenly spaced and then shifted.

    Four steps at shift 5 give 1, .9375, .8333, .625, 0: the list of Self-Forcing, FastGen and Magic141.
    """
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return tuple(shift_sigma(even, shift).tolist())


def score_times(
    count: int,
    *,
    law: ScoreLaw = "uniform",
    shift: float = 1.0,
    lowest: float = 0.02,
    highest: float = 0.98,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise levels (count,) at which the scores are compared: U(0, 1), shifted if the law says so, clamped.

    The clamp to [.02, .98] is DMD's T_min and T_max (arXiv 2311.18828, 3.2) where sigma is t / T; of a noise model with
    timesteps .98 T is a higher sigma, which its recipes name. Uniform then shift is CausVid's order.
    """
    u = torch.rand(count, generator=generator)
    return (shift_sigma(u, shift) if law == "shift" else u).clamp(lowest, highest)
