"""Denoising losses: flow matching (arXiv 2210.02747) for a teacher, and the critic's (DMD, arXiv 2311.18828, eq. 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..numbers import wide

if TYPE_CHECKING:
    from torch import Tensor

    from ..flow import Process


def denoising_loss(
    process: Process, output: Tensor, x0: Tensor, eps: Tensor, sigma: Tensor, free: Tensor | None = None
) -> Tensor:
    """Mean squared error of the model's raw output, weighted as in the teacher's own pre-training.

    Args:
        output: what the model said of `process.noise(x0, eps, sigma)`, `b c f h w`.
        x0: the clean samples; for the critic the student's, without gradient.
        eps: unit noise.
        sigma: (b,).
        free: what there is to predict, 1 or 0, broadcasts against `b c f h w`; None = everything.

    Returns:
        A scalar.
    """
    error = (wide(output) - process.target(x0, eps, sigma)).square()
    return error.mean() if free is None else (error * free).sum() / free.expand_as(error).sum()
