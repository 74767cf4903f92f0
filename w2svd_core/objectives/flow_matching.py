"""Denoising losses: flow matching (arXiv 2210.02747) for a teacher, and the critic's (DMD, arXiv 2311.18828, eq. 6)."""

from __future__ import annotations

from torch import Tensor

from ..flow import Process, wide


def denoising_loss(process: Process, output: Tensor, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Mean squared error of the model's raw output, weighted as in the teacher's own pre-training.

    Args:
        output: what the model said of `process.noise(x0, eps, sigma)`, `b c f h w`.
        x0: the clean samples; for the critic the student's, without gradient.
        eps: unit noise.
        sigma: (b,).

    Returns:
        A scalar.
    """
    return (wide(output) - process.target(x0, eps, sigma)).square().mean()
