"""DMD (arXiv 2311.18828), DMD2 (arXiv 2405.14867) and W2SVD / MagicDistillation (arXiv 2503.13319), in x0-space.

The three differ only in the weights behind the real score, which is the caller's affair: alpha_weak = 0 is DMD2 with an
adapter for the fake score, alpha_weak = 0.25 is W2SVD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..numbers import wide

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Gap:
    """What to watch in a pair of scores; means over the batch.

    Attributes:
        cosine: between the two residuals x0 - x_student of real and fake; 1 where they want the same.
        relative: |x0_fake - x0_real| / |x_student - x0_real|, the size of the gradient before it is normalised.
        nonfinite: elements of the gradient that are not finite.
    """

    cosine: float
    relative: float
    nonfinite: int


def per_sample_mean(x: Tensor, free: Tensor | None) -> Tensor:
    """The mean of each sample, or of what is free in it, as `b 1 1 1 1`."""
    if free is not None:
        return per_sample_mean(x * free, None) / per_sample_mean(free, None)
    return x.flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))


def matching_gradient(
    x_student: Tensor, x0_fake: Tensor, x0_real: Tensor, floor: float = 0.05, free: Tensor | None = None
) -> Tensor:
    """The gradient with respect to the student's clean sample (DMD eq. 7 with the weight of eq. 8, alpha_t dropped).

    g = (x0_fake - x0_real) / max(mean |x_student - x0_real|, floor), the mean over each sample.

    Args:
        x_student, x0_fake, x0_real: `b c f h w`; fake and real are the clean samples that the two scores see in the
            student's sample after noise was added to it.
        floor: in latent units; at small sigma the denominator goes to zero and the gradient would explode.
        free: what there is to predict, 1 or 0, broadcasts against `b c f h w`; None = everything. The mean is taken
            there; where a first frame is given, all three hold it and the gradient is zero.

    Returns:
        `b c f h w`, float32 or wider, no gradient. Non-finite elements stay as they are: see `watch`.
    """
    x, fake, real = wide(x_student).detach(), wide(x0_fake).detach(), wide(x0_real).detach()
    return (fake - real) / per_sample_mean((x - real).abs(), free).clamp(min=floor)


def matching_loss(x_student: Tensor, gradient: Tensor, free: Tensor | None = None) -> Tensor:
    """A scalar whose gradient in x_student is `gradient` / elements: 1/2 |x - sg(x - g)|^2 (DMD2's form).

    Args:
        free: as in `matching_gradient`; elements that are given do not count.
    """
    x = wide(x_student)
    error = (x - (x - gradient).detach()).square()
    return 0.5 * (error.mean() if free is None else per_sample_mean(error, free).mean())


def watch(x_student: Tensor, x0_fake: Tensor, x0_real: Tensor) -> Gap:
    """Numbers that tell how the two scores stand to each other; the critic's loss alone tells nothing."""
    import torch

    x, fake, real = wide(x_student).detach(), wide(x0_fake).detach(), wide(x0_real).detach()
    cosine = torch.cosine_similarity((fake - x).flatten(1), (real - x).flatten(1), dim=1).mean()
    relative = ((fake - real).flatten(1).norm(dim=1) / (x - real).flatten(1).norm(dim=1).clamp(min=1e-8)).mean()
    return Gap(float(cosine), float(relative), int((~(fake - real).isfinite()).sum()))


def _mean_distance(x: Tensor) -> float:
    """Between two rows of `b c f h w`, b > 1: the root mean square difference of an element, mean over all pairs."""
    rows = wide(x).detach().flatten(1)
    distances = [float((rows - rows.roll(k, 0)).square().mean(1).sqrt().mean()) for k in range(1, len(rows))]
    return sum(distances) / len(distances)


def relative_diversity(x_student: Tensor, data: Tensor) -> float | None:
    """How far apart the student's samples lie, relative to the clips of the same captions: a student that forgets
    modes falls towards 0 long before it looks wrong.

    Args:
        x_student, data: `b c f h w`, unit scale; samples and clips of the same rows of a batch.

    Returns:
        The mean distance between two samples over that between two clips: 1 is as spread as the data, 0 one and the
        same sample. None where there is nothing to compare: a single row, or rows of one clip alone.
    """
    if len(x_student) < 2 or (apart := _mean_distance(data)) == 0:
        return None
    return _mean_distance(x_student) / apart
