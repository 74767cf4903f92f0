"""Clips from a model in a role: who predicts, with what guidance, along which sigmas, from which seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .condition import Condition
from .randomness import noise_of_seeds
from .roles import Query, Role, SharedModel
from .sampling import PredictX0, Sampler, guide, sample


@dataclass(frozen=True)
class Way:
    """How to sample.

    Attributes:
        role: whose weights.
        sigmas: descending, ending in 0.
        sampler: euler or renoise.
        guidance_scale: u + g (c - u); 1.0 is none and costs half.
    """

    role: Role
    sigmas: tuple[float, ...]
    sampler: Sampler
    guidance_scale: float = 1.0

    @property
    def steps(self) -> int:
        """Model calls, a guided one counted once."""
        return len(self.sigmas) - 1


def predictor(model: SharedModel, way: Way, condition: Condition, null: Condition) -> PredictX0:
    """x0 at (x_t, sigma) for a batch of conditions, guided where the way asks for it."""

    def predict(x_t: Tensor, sigma: float) -> Tensor:
        if way.guidance_scale == 1.0:
            return model.predict_x0(way.role, x_t, sigma, condition)
        empty = condition.instead(null)
        if way.role == "generator":
            cond, uncond = (model.predict_x0(way.role, x_t, sigma, c) for c in (condition, empty))
        else:
            levels = torch.full((len(x_t),), sigma, device=x_t.device)
            both = [Query(way.role, x_t, levels, c) for c in (condition, empty)]
            cond, uncond = model.predict_x0_together(both)
        return guide(cond, uncond, way.guidance_scale)

    return predict


@torch.no_grad()
def generate(
    model: SharedModel,
    way: Way,
    condition: Condition,
    null: Condition,
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    batch: int = 64,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Tensor:
    """Latents (n, *shape) of n conditions and n seeds, on the CPU; each clip depends on its own seed alone.

    Args:
        condition: n rows.
        null: one row.
        shape: (c, f, h, w).
        batch: clips at a time.
    """
    parts = []
    for start in range(0, len(seeds), batch):
        rows = slice(start, start + batch)
        some, device = seeds[rows], model.device
        predict = predictor(model, way, condition[rows].to(device), null.to(device))

        def noise(step: int, some: Sequence[int] = some, device: torch.device = device) -> Tensor:
            return noise_of_seeds(shape, some, step).to(device)

        parts.append(sample(predict, model.backbone.process, noise, way.sigmas, way.sampler).cpu())
        progress(min(start + batch, len(seeds)), len(seeds))
    return torch.cat(parts)
