"""Consistency distillation: LCM (arXiv 2310.04378) in FastVideo's form for flow models (`distill.py`, `solver.py`).

A consistency function says the same clean sample at all points of one path of the teacher. It is trained on pairs of
neighbours: what it says at the noisier point follows what its target says one teacher step further on. One phase alone:
every point leads to sigma 0 (FastVideo's `multi_phased_distill_schedule` may end it at levels in between).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from ..numbers import wide
from ..sections import Section, setting

if TYPE_CHECKING:
    from torch import Tensor

    from ..flow import Process


class Settings(Section):
    """LCM's own settings (only for method consistency)."""

    points: int = setting(50, "noisy levels of the grid on which neighbours agree", unit="levels", ge=2, le=1000)
    shift: float = setting(5.0, "sigma shift of the grid", ge=0.01, le=100)
    guidance_scale: float = setting(1.0, "guidance of the teacher's step, u + g(c - u); 1 = none", ge=0, le=100)
    skip: int = setting(1, "levels that one teacher step goes down the grid", unit="levels", ge=1, le=1000)
    huber: float = setting(
        1e-3, "where the pseudo-Huber distance turns from square to straight", unit="latent units", ge=1e-6, le=100
    )
    target_ema: float = setting(
        0.95, "decay of the average that makes the targets (0 = the student as it is)", ge=0, le=0.99999
    )

    @model_validator(mode="after")
    def _inside_the_grid(self) -> Self:
        if self.skip > self.points:
            raise ValueError(
                f"consistency.skip {self.skip} goes beyond the {self.points} levels of consistency.points; "
                "lower the one or raise the other"
            )
        return self


def grid(points: int, shift: float, highest: float = 1.0) -> tuple[float, ...]:
    """`points` descending noisy levels, evenly spaced, then shifted, then scaled to begin at `highest`; and a last 0.

    FastVideo ends at its scheduler's lowest level, 1/1000 shifted; here it is 0 (its comment allows both).
    """
    from ..flow import sigma_list

    return tuple(highest * level for level in sigma_list(points, shift))


def neighbour(start: Tensor, skip: int, points: int) -> Tensor:
    """Index of the level at which the teacher's step from each `start` (b,) ends: `skip` further, at most the last, 0.

    LCM (4.3) draws starts from which a whole jump fits; a shorter last jump trains all levels (ours).
    """
    return (start + skip).clamp(max=points)


def teacher_step(process: Process, x_t: Tensor, x0: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """One Euler step along the teacher's path (LCM, 4.2, with its solver Psi; FastVideo's Euler step).

    For a flow it is x + (next_sigma - sigma) v; for noise models it is DDIM's.

    Args:
        x_t: `b c f h w`.
        x0: the clean sample that the guided teacher sees in it.
        sigma, next_sigma: (b,), sigma > next_sigma >= 0.
    """
    return process.noise(x0, process.eps_from_x0(x_t, x0, sigma), next_sigma)


def with_boundary(x_t: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The consistency function: x0 where there is noise, and x_t itself at sigma 0 (LCM, 4.1: the boundary condition).

    Velocity and noise models say so by themselves; no c_skip and c_out are needed, which would weaken a flow's x0.
    """
    from ..flow import per_sample

    return wide(x0).where(per_sample(sigma, x_t) > 0, wide(x_t))


def pseudo_huber(found: Tensor, target: Tensor, scale: float, free: Tensor | None = None) -> Tensor:
    """Mean of sqrt(d^2 + c^2) - c over the elements: d^2 / 2c where d is small, |d| - c where it is large.

    Args:
        found: with gradient, `b c f h w`.
        target: without.
        scale: c, in latent units.
        free: what there is to predict, 1 or 0, broadcasts against `b c f h w`; None = everything.

    Returns:
        A scalar.
    """
    distance = ((wide(found) - wide(target).detach()).square() + scale**2).sqrt() - scale
    return distance.mean() if free is None else (distance * free).sum() / free.expand_as(distance).sum()
