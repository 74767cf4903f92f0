"""What the fake and the real score say of noised samples, in x0: the two answers that a gradient is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from .condition import Condition
from .roles import Query, SharedModel, Strength
from .sampling import guide


@torch.no_grad()
def ask_scores(
    model: SharedModel,
    noised: tuple[Tensor, Tensor],
    sigma: Tensor,
    condition: Condition,
    null: Condition,
    *,
    guidance_scale: float,
    batched: bool,
    alpha_weak: Strength | None = None,
) -> tuple[Tensor, Tensor]:
    """x0 of the fake score and of the guided real score.

    Args:
        noised: what each of the two is asked, `b c f h w`.
        sigma: (b,).
        null: one row, guidance's empty prompt.
        guidance_scale: u + g (c - u), of the real score alone; 1 = none.
        batched: one forward pass; false makes a pass for each, where memory is short.
        alpha_weak: strength of the critic's adapter in the real score; None = the model's own.
    """
    fake_t, real_t = noised
    queries = [Query("fake", fake_t, sigma, condition), Query("real", real_t, sigma, condition, alpha_weak)]
    if guidance_scale != 1.0:
        queries.append(Query("real", real_t, sigma, condition.instead(null), alpha_weak))
    if batched:
        fake, real, *uncond = model.predict_x0_together(queries)
    else:
        fake, real, *uncond = [model.predict_x0(q.role, q.x_t, q.sigma, q.condition, q.alpha) for q in queries]
    return fake, guide(real, uncond[0], guidance_scale) if uncond else real
