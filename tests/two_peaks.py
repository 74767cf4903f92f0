"""A skewed distribution with an exact score: what has zero mean on it has so for a reason, not by symmetry."""

from __future__ import annotations

import torch
from torch import Tensor


class TwoPeaks:
    """Every element .8 of N(-1, .3^2) and .2 of N(2, .5^2), in the flow x_t = (1 - sigma) x0 + sigma eps."""

    weights, means, stds = (0.8, 0.2), (-1.0, 2.0), (0.3, 0.5)

    @classmethod
    def draw(cls, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Samples."""
        second = torch.rand(shape, generator=rng) < cls.weights[1]
        one, other = (
            mean + std * torch.randn(shape, generator=rng) for mean, std in zip(cls.means, cls.stds, strict=True)
        )
        return torch.where(second, other, one)

    @classmethod
    def x0(cls, x_t: Tensor, sigma: Tensor) -> Tensor:
        """The exact clean sample of `b c f h w` at levels (b,): each peak's, weighted by how likely it is."""
        s = sigma.view(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype)
        logs, clean = [], []
        for weight, mean, std in zip(cls.weights, cls.means, cls.stds, strict=True):
            variance = (1 - s) ** 2 * std**2 + s**2
            off = x_t - (1 - s) * mean
            logs.append(torch.log(torch.tensor(weight)) - 0.5 * torch.log(variance) - 0.5 * off**2 / variance)
            clean.append(mean + (1 - s) * std**2 / variance * off)
        shares = torch.stack(logs).softmax(0)
        return (shares * torch.stack(clean)).sum(0)
