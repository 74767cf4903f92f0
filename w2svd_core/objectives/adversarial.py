"""A denoising GAN on the model's own features: DMD2 (arXiv 2405.14867, 4.3), AVDM2 (arXiv 2412.05899), W2SVD's figure.

They and FastGen differ in whose features the discriminator reads. Clips and student samples are noised before they
are looked at, so that their supports overlap. Only small heads are trained (DMD2 trains its fake model along with them;
here the critic learns from its own loss alone: ours).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from ..sections import MAX_COUNT, Optimizer, setting
from ..terms import Term

if TYPE_CHECKING:
    from torch import Tensor

    from ..condition import Condition
    from ..heads import Features
    from ..rollout import Rollout
    from ..settings import Recipe
    from ..terms import Stage, StudentStep

Form = Literal["softplus", "hinge"]
ROLES: dict[str, Any] = {"teacher": "teacher", "fake": "fake", "student": "generator"}


class Settings(Optimizer):
    """A discriminator on features of the model, and the optimizer of its heads."""

    weight: float = setting(0.0, "weight of the generator's adversarial loss (0 = off)", ge=0, le=100)
    features: Literal["teacher", "fake", "student"] = setting(
        "teacher", "whose features the discriminator reads: teacher (FastGen, AVDM2), fake (DMD2) or student (W2SVD)"
    )
    depths: tuple[float, ...] = setting(
        (0.5, 0.75, 1.0),
        "which blocks are read, by their depth in the model (W2SVD reads the last double block: .333 of HunyuanVideo)",
        rule="a list of 1 to 16 depths above 0 and at most 1, such as 0.5,0.75,1",
    )
    form: Form = setting("softplus", "softplus = non-saturating (DMD2, FastGen, AVDM2), or hinge")
    hidden: int = setting(128, "width of a head", unit="channels", ge=1, le=8192)
    updates: int = setting(1, "updates of the heads for each generator update (AVDM2: 2)", unit="updates", ge=1, le=100)
    delay: int = setting(0, "generator updates before the loss sets in", unit="updates", ge=0, le=MAX_COUNT)
    ramp: int = setting(0, "generator updates in which it rises to its weight", unit="updates", ge=0, le=MAX_COUNT)
    r1: float = setting(0.0, "weight of the approximate R1 penalty on the heads (0 = off)", ge=0, le=1e6)
    r1_std: float = setting(0.05, "noise on a clip for that penalty, in latent units", ge=1e-6, le=1)

    @field_validator("depths")
    @classmethod
    def _depths(cls, depths: tuple[float, ...]) -> tuple[float, ...]:
        if not 1 <= len(depths) <= 16 or not all(0 < depth <= 1 for depth in depths):
            raise ValueError("not depths of a model")
        return depths


def discriminator_loss(real: Tensor, student: Tensor, form: Form = "softplus") -> Tensor:
    """A scalar of logits of any shape.

    softplus: -log D(real) - log(1 - D(student)), DMD2's eq. 4 with the sign of a loss.
    hinge: max(0, 1 - real) + max(0, 1 + student).
    """
    if form == "hinge":
        return (1 - real).relu().mean() + (1 + student).relu().mean()
    return -_log_sigmoid(real).mean() - _log_sigmoid(-student).mean()


def generator_loss(student: Tensor, form: Form = "softplus") -> Tensor:
    """A scalar of the logits of the student's samples. softplus: -log D(student), non-saturating; hinge: -student."""
    return -student.mean() if form == "hinge" else -_log_sigmoid(student).mean()


def r1_penalty(logits: Tensor, disturbed: Tensor, std: float) -> Tensor:
    """Approximate R1: mean (D(x) - D(x + n))^2 / std^2, n ~ N(0, std^2).

    In place of |grad D|^2, which would need a second derivative of the model (APT, arXiv 2501.08316; used by FastGen).
    """
    return (logits - disturbed).square().mean() / std**2


def _log_sigmoid(logits: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    found: Tensor = logsigmoid(logits)
    return found


def over_taps(values: Iterable[Tensor]) -> Tensor:
    """The mean of a scalar of each tap: a coarse scale of a UNet weighs as much as a fine one of many more places."""
    import torch

    return torch.stack(list(values)).mean()


def strength(update: int, weight: float, delay: int, ramp: int) -> float:
    """The loss's weight at a generator update, counted from 0."""
    since = update - delay
    return 0.0 if since < 0 else weight * min(1.0, (since + 1) / (ramp + 1))


class Added(Term):
    """The discriminator: heads on noised clips and noised samples, and their gradient for the generator."""

    settings: Settings
    needs_clips = True

    def __init__(self, settings: Settings, stage: Stage) -> None:
        from ..heads import Heads, Taps

        super().__init__(settings, stage)
        model, r = stage.model, stage.recipe
        self.role: Any = ROLES[settings.features]
        self.taps = Taps(list(model.backbone.blocks(model.network(self.role))), settings.depths)
        self.heads = Heads(self._widths(), settings.hidden, r.seed).to(model.device)
        rounds = r.critic.warmup + r.train.steps
        named = dict(self.heads.named_parameters())
        self.learners = {"heads": stage.new_learner("adversarial", named, settings, rounds * settings.updates)}

    @classmethod
    def is_on(cls, settings: Settings) -> bool:
        return settings.weight > 0

    @classmethod
    def misfit(cls, settings: Settings, recipe: Recipe) -> str:
        from . import terms_on

        if settings.features == "fake" and not recipe.matching.weight:
            return (
                "adversarial.features fake are the critic's, and matching.weight 0 leaves none; set them to teacher, "
                "or matching.weight to 1"
            )
        if settings.delay >= recipe.train.steps:
            return (
                f"adversarial.delay {settings.delay} is not below train.steps {recipe.train.steps}, so its loss would "
                "never set in; lower it"
            )
        if not (settings.lr or recipe.start):
            return (
                "adversarial.lr 0 leaves its heads as they begin, which judge nothing; raise it, or set its weight to 0"
            )
        if settings.delay and not recipe.matching.weight and terms_on(recipe) == {"adversarial"}:
            return (
                f"adversarial.delay {settings.delay} leaves the student without any loss until it is over, since "
                "matching.weight is 0; set it to 0"
            )
        return ""

    def loss(self, step: StudentStep) -> Tensor | None:
        """The gradient in x0 is taken here and handed on: nothing reaches the networks that are looked through."""
        import torch

        weight = strength(step.index - self.stage.recipe.critic.warmup, *self._course())
        if not weight:
            return None
        x0 = step.x0.detach().requires_grad_()
        noised = self.stage.model.backbone.process.noise(x0, step.eps, step.sigma)
        features = self._features(noised, step.sigma, step.rollout.condition)
        logits = self._logits(features)
        value = over_taps(generator_loss(one, self.settings.form) for one in logits)
        count = sum(one.numel() for one in logits)
        scale = 2.0 ** int(math.log2(count))  # each logit's share of the mean would be nothing in float16
        (gradient,) = torch.autograd.grad(scale * value, x0)
        step.logs["adversarial/generator"] = float(value.detach())
        if step.free is not None:
            gradient = gradient * step.free
        pull = (step.x0 * (gradient / scale)).sum()
        return weight * (pull - pull.detach() + value.detach())  # the loss's own value, for the logs

    def learn(self, index: int, x0: Tensor, rollout: Rollout) -> dict[str, float]:
        assert rollout.data is not None  # see `needs_clips`
        logs: dict[str, float] = {}
        for k in range(self.settings.updates):
            logs |= self._update(index, k, x0.detach(), rollout.data, rollout.condition)
        return logs

    def _update(self, index: int, k: int, x0: Tensor, data: Tensor, condition: Condition) -> dict[str, float]:
        """One update of the heads, on clips and samples with the same noise and levels."""
        import torch

        s, stage = self.settings, self.stage
        process = stage.model.backbone.process
        sigma = stage.score_sigma(len(x0), index, "adversarial", k)
        eps = stage.noise(x0.shape, index, "adversarial", k)
        seen = [process.noise(data, eps, sigma), process.noise(x0, eps, sigma)]
        if s.r1:
            apart = s.r1_std * stage.noise(x0.shape, index, "adversarial r1", k)
            seen.append(process.noise(data + apart, eps, sigma))
        with torch.no_grad():
            features = [self._features(x_t, sigma, condition) for x_t in seen]
        real, student, *disturbed = [self._logits(one) for one in features]
        pairs = list(zip(real, student, strict=True))
        loss = over_taps(discriminator_loss(clip, sample, s.form) for clip, sample in pairs)
        if disturbed:
            moved = zip(real, disturbed[0], strict=True)
            loss = loss + s.r1 * over_taps(r1_penalty(clip, other, s.r1_std) for clip, other in moved)
        right = over_taps(0.5 * ((clip > 0).float().mean() + (sample < 0).float().mean()) for clip, sample in pairs)
        return self.learners["heads"].update(loss) | {"adversarial/right": float(right)}

    def _logits(self, features: Sequence[Features]) -> list[Tensor]:
        """Logits `n` of each tap, all rows and tokens."""
        import torch

        parts = zip(*[self.heads(one) for one in features], strict=True)
        return [torch.cat([part.flatten() for part in of_tap]) for of_tap in parts]

    def _features(self, x_t: Tensor, sigma: Tensor, condition: Condition) -> list[Features]:
        """What the taps put out; each length of prompts by itself, where the model can't be told what is filler."""

        def seen(rows: Any, own: Condition) -> Features:
            return self.taps.of(lambda: self.stage.model.predict(self.role, x_t[rows], sigma[rows], own))

        parts = condition.alike() if condition.ragged else [(slice(None), condition)]
        return [seen(rows, own) for rows, own in parts]

    def _widths(self) -> Sequence[int]:
        """Channels of each tap, seen on one row."""
        import torch

        stage, device = self.stage, self.stage.model.device
        rows = stage.data.rows(0, 1, 0)
        _, condition = stage.data.batch(rows, device)
        x = torch.zeros(1, *stage.data.shape(rows), device=device)
        with torch.no_grad():
            (taps,) = self._features(x, torch.ones(1, device=device), condition)
        return [one.shape[-1] for one in taps]

    def _course(self) -> tuple[float, int, int]:
        return self.settings.weight, self.settings.delay, self.settings.ramp
