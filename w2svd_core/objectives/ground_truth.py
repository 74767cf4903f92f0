"""The ground-truth term of W2SVD (arXiv 2503.13319; pipeline figure, "Reg. loss"). Off by default: it freezes motion.

Read from the figure: it goes from the fake video minus the real video, to the generator alone. Its normaliser and
weight could not be read; here it is normalised as the matching gradient is (inferred).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .distribution_matching import matching_gradient

if TYPE_CHECKING:
    from torch import Tensor


def ground_truth_gradient(
    x_student: Tensor, x0_fake: Tensor, x_data: Tensor, floor: float = 0.05, free: Tensor | None = None
) -> Tensor:
    """g = (x0_fake - x_data) / max(mean |x_student - x_data|, floor), the mean over each sample.

    Args:
        x_student, x0_fake, free: as in `matching_gradient`.
        x_data: the real clip that the student's input was noised from, `b c f h w`.
    """
    return matching_gradient(x_student, x0_fake, x_data, floor, free)
