"""What a paper can add to a generator update, and what it is given for it.

A term stands in its paper's file in `objectives/` as the class `Added`, beside the class `Settings` that switches it
on. It may move what the teacher is asked, make the generator's gradient out of the scores itself, add a loss, and train
networks of its own. All samples are x0, `b c f h w`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .data.encoder_source import EncoderSource
    from .data.training_set import TrainingSet
    from .learner import Learner
    from .roles import SharedModel
    from .rollout import Rollout
    from .sections import Optimizer
    from .settings import Recipe


@dataclass(frozen=True)
class StudentStep:
    """One supervised step of the generator.

    Attributes:
        index: of the round.
        x0: the student's sample, with gradient.
        rollout: where it came from; its `data` are clips of the same rows, None with prompts alone.
        sigma, eps: (b,) and `b c f h w`: how the scores' queries are noised.
        free: what there is to predict, 1 or 0; None = everything.
        logs: numbers for metrics.jsonl, by name; a term puts its own in.
    """

    index: int
    x0: Tensor
    rollout: Rollout
    sigma: Tensor
    eps: Tensor
    free: Tensor | None
    logs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What the real score is asked.

    Attributes:
        x_t: a noised sample at the step's sigma.
        alpha_weak: strength of the critic's adapter in the real score, one or (b,); None = `matching.alpha_weak`.
    """

    x_t: Tensor
    alpha_weak: float | Tensor | None = None


class NewLearner(Protocol):
    """Makes the learner of a network that a term trains: its weights, its optimizer, the updates of the whole run."""

    def __call__(
        self, name: str, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, updates: int, /
    ) -> Learner: ...


@dataclass(frozen=True)
class Stage:
    """What is there around a term.

    Attributes:
        rng: a generator that depends on the run's seed, the round, a purpose, and the process.
        shared_rng: the same, alike on all processes.
        noise: unit noise of a shape from `rng`, on the model's device.
        score_sigma: noise levels (b,) by the law of the scores, from `rng`.
        new_learner: for networks of its own.
    """

    recipe: Recipe
    model: SharedModel
    data: TrainingSet
    source: EncoderSource
    rng: Callable[..., torch.Generator]
    shared_rng: Callable[..., torch.Generator]
    noise: Callable[..., Tensor]
    score_sigma: Callable[..., Tensor]
    new_learner: NewLearner


class Term(ABC):
    """The base of all terms; a paper overrides what it needs.

    Args:
        settings: the paper's own section of the recipe.
        stage: what is there around it.

    Attributes:
        needs_clips: it learns from clips, and prompts alone do not serve.
    """

    needs_clips = False

    def __init__(self, settings: Any, stage: Stage) -> None:
        self.settings, self.stage = settings, stage
        self.learners: dict[str, Learner] = {}

    @classmethod
    @abstractmethod
    def is_on(cls, settings: Any) -> bool:
        """Whether these settings ask for it."""

    @classmethod
    def misfit(cls, settings: Any, recipe: Recipe) -> str:
        """Why it can't act in a recipe that asks for it; "" = it can."""
        return ""

    def question(self, step: StudentStep) -> Question | None:
        """What the real score is asked instead of the student's noised sample; None leaves it."""
        return None

    def gradient(self, step: StudentStep, x0_fake: Tensor, x0_real: Tensor) -> Tensor | None:
        """The generator's gradient out of the answers, instead of the matching one; None leaves it."""
        return None

    def loss(self, step: StudentStep) -> Tensor | None:
        """A scalar that is added to the generator's loss, weight included."""
        return None

    def remarks(self) -> list[str]:
        """What a user should hear before the run begins."""
        return []

    def models(self) -> Mapping[str, Tensor]:
        """Weights of frozen models of its own, by name; a run that goes on must find the same ones."""
        return {}

    def learn(self, index: int, x0: Tensor, rollout: Rollout) -> dict[str, float]:
        """Train networks of its own on the round's student samples; returns what to log."""
        return {}
