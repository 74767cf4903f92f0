"""Data-Forcing Distillation (arXiv 2606.18478): in some steps the teacher is asked about real clips instead.

The matching gradient alone is an expectation over the student's samples, so that modes which the student does not visit
pull at nothing. With probability p a step asks the teacher about the noised clip of the same caption, at the same noise
and level: (x0_fake(x_t of the student) - x0_real(x_t of the clip)). p = 0 is distribution matching.

The strength of the critic's adapter in those steps is ours (the query lies on data already, so 0: the plain teacher),
and so is the knob between the teacher's view of the clip (DFD) and the clip itself (W2SVD's ground-truth term, which is
DFD with an identity teacher). To force data at high noise alone is what others report to keep detail sharp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..numbers import wide
from ..sections import Section, setting
from ..terms import Question, Term
from .distribution_matching import matching_gradient, per_sample_mean

if TYPE_CHECKING:
    from torch import Tensor

    from ..settings import Recipe
    from ..terms import StudentStep


class Settings(Section):
    """Data-Forcing Distillation (arXiv 2606.18478): the teacher is asked about real clips in some steps."""

    probability: float = setting(0.0, "share of steps that ask the teacher about the clip (0 = off)", ge=0, le=1)
    alpha_weak: float = setting(0.0, "share of the critic's adapter in the real score in those steps", ge=0, le=1)
    space: Literal["x0", "score"] = setting(
        "x0", "x0 = difference of clean samples, as the authors' code; score = of scores, as the paper's equation 8"
    )
    clip_share: float = setting(
        0.0,
        "target between the teacher's view of the clip (0) and the clip itself (1, the ground-truth term)",
        ge=0,
        le=1,
    )
    lowest_sigma: float = setting(
        0.0,
        "noise level below which a row is matched as usual, since pairs differ in place there",
        unit="sigma",
        ge=0,
        le=1,
    )


def forced_gradient(
    x_student: Tensor,
    x0_fake: Tensor,
    target: Tensor,
    data: Tensor,
    space: Literal["x0", "score"] = "x0",
    floor: float = 0.05,
    free: Tensor | None = None,
) -> Tensor:
    """The gradient with respect to the student's clean sample of a data-forced step.

    x0 space (the authors' code): g = (x0_fake - target) / max(mean |x_student - target|, floor).
    Score space (equation 8): with the same noise, s_fake(x_t of the student) - s_real(x_t of the clip) is
    alpha / sigma^2 times (x0_fake - target) + (data - x_student). So the x0 form is the paper's equation plus a pull of
    the student towards the clip. Both share the normaliser (ours: the paper prints none).

    Args:
        x_student, x0_fake, free: as in `matching_gradient`.
        target: what the real score says of the noised clip, guidance included.
        data: the clip.
    """
    gradient = matching_gradient(x_student, x0_fake, target, floor, free)
    if space == "x0":
        return gradient
    x, view, clip = (wide(t).detach() for t in (x_student, target, data))
    return gradient + (clip - x) / per_sample_mean((x - view).abs(), free).clamp(min=floor)


def pair_distance(x_student: Tensor, data: Tensor, free: Tensor | None = None) -> float:
    """mean |x_student - data|: what the paper's condition 7 bounds. It grows with the noise of the student's input."""
    return float(per_sample_mean((wide(x_student).detach() - wide(data)).abs(), free).mean())


class Added(Term):
    """Moves the teacher's query in some steps; the coin falls alike on all processes."""

    settings: Settings
    needs_clips = True

    @classmethod
    def is_on(cls, settings: Settings) -> bool:
        return settings.probability > 0

    @classmethod
    def misfit(cls, settings: Settings, recipe: Recipe) -> str:
        if recipe.matching.weight == 0:
            return (
                "data_forcing moves the query of the matching loss, and matching.weight is 0; set data_forcing."
                "probability to 0, or matching.weight to 1"
            )
        if settings.space == "score" and settings.clip_share:
            return (
                f"data_forcing.clip_share {settings.clip_share:g} takes the clip out of the difference of scores, and "
                "at 1 nothing of it is left; set it to 0, or data_forcing.space to x0"
            )
        if settings.lowest_sigma > recipe.matching.score_max:
            return (
                f"data_forcing.lowest_sigma {settings.lowest_sigma:g} lies above every score "
                f"(matching.score_max {recipe.matching.score_max:g}), so no row would be asked about a clip; lower it"
            )
        if settings.alpha_weak > recipe.matching.alpha_strong:
            return (
                f"data_forcing.alpha_weak {settings.alpha_weak:g} is above matching.alpha_strong "
                f"{recipe.matching.alpha_strong:g}, so the real score would hold more of the critic than the fake; "
                "lower it"
            )
        if recipe.critic.kind == "full" and settings.alpha_weak:
            return (
                f"critic.kind full has no adapter for data_forcing.alpha_weak {settings.alpha_weak:g}; set it to 0, or "
                "critic.kind to lora"
            )
        return ""

    def question(self, step: StudentStep) -> Question | None:
        forced = self._forced(step)
        if forced is None:
            return None
        data, rows = forced
        noise, weak = self.stage.model.backbone.process.noise, self.settings.alpha_weak
        if rows is None:
            return Question(noise(data, step.eps, step.sigma), weak)
        x0, usual = step.x0.detach(), self.stage.recipe.matching.alpha_weak
        x_t = noise(x0 + rows * (data - x0), step.eps, step.sigma)
        return Question(x_t, usual + rows.flatten() * (weak - usual))

    def gradient(self, step: StudentStep, x0_fake: Tensor, x0_real: Tensor) -> Tensor | None:
        forced = self._forced(step)
        if forced is None:
            return None
        data, rows = forced
        s, floor = self.settings, self.stage.recipe.matching.normaliser_floor
        target = x0_real.lerp(data.to(x0_real.dtype), s.clip_share)
        gradient = forced_gradient(step.x0, x0_fake, target, data, s.space, floor, step.free)
        if rows is None:
            return gradient
        matched = matching_gradient(step.x0, x0_fake, x0_real, floor, step.free)
        return matched + rows * (gradient - matched)

    def remarks(self) -> list[str]:
        if self.stage.recipe.start:
            return []
        return [
            "data_forcing starts from a distilled student and its critic, and from nothing the paper saw it not "
            "converge; name a run by --from"
        ]

    def _forced(self, step: StudentStep) -> tuple[Tensor, Tensor | None] | None:
        """The clips that a step is asked about, and 1 for the rows that are, `b 1 1 1 1` (None: all of them).

        None where the coin did not fall so, or no row's level is high enough: that step is plain matching.
        """
        import torch

        coin = float(torch.rand((), generator=self.stage.shared_rng(step.index, "data forcing", step.rollout.step)))
        high = step.sigma >= self.settings.lowest_sigma
        share = float(high.float().mean()) if coin < self.settings.probability else 0.0
        step.logs["data_forcing/forced"] = share
        if not share:
            return None
        data = step.rollout.data
        assert data is not None  # see `needs_clips`
        name = f"data_forcing/pair_distance_{step.rollout.sigma:.3g}"
        step.logs[name] = pair_distance(step.x0[high], data[high], None if step.free is None else step.free[high])
        return data, None if share == 1 else high.to(step.x0.dtype).view(-1, *[1] * (step.x0.ndim - 1))
