"""One round of distillation: a rollout, a generator update, and the critic's updates from the same rollout.

This is the wiring between roles, rollout and objectives; the loop around it is the trainer's. A round costs, in forward
passes: the walk to the exit step, one train pass of the generator, three scores in one batch, k train passes of the
critic. Nothing is simulated twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor

from .condition import Condition
from .data.encoder_source import EncoderSource
from .data.training_set import TrainingSet
from .errors import UserError
from .flow import score_times
from .learner import Learner, under
from .numbers import motion_of
from .objectives import terms
from .objectives.distribution_matching import matching_gradient, matching_loss, relative_diversity, watch
from .objectives.flow_matching import denoising_loss
from .objectives.ground_truth import ground_truth_gradient
from .randomness import generator
from .roles import SharedModel
from .rollout import Rollout, VisitPools, draw_exit, noise_data, simulate, simulate_all
from .scores import ask_scores
from .settings import Recipe
from .terms import NewLearner, Question, Stage, StudentStep, Term

T = TypeVar("T")


class Distillation:
    """Trains the generator and the critic of a shared model on two time scales (DMD2, arXiv 2405.14867, 4.2).

    Args:
        recipe: what to do.
        model: the base and its roles.
        data: clips (for noised data, and for terms that learn from clips) and the conditions to roll out on.
        source: the encoders, for terms that need pixels.
        student: the generator's learner.
        critic: the fake score's; None where nothing is matched (`matching.weight` 0).
        new_learner: makes the learners of terms.
        rank: number of this process; draws of samples differ between processes, exit steps do not.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: SharedModel,
        data: TrainingSet,
        source: EncoderSource,
        student: Learner,
        critic: Learner | None,
        new_learner: NewLearner,
        rank: int = 0,
    ) -> None:
        self.recipe, self.model, self.data = recipe, model, data
        self.student, self.critic = student, critic
        self.rank = rank
        self.process = model.backbone.process
        self.sigmas = recipe.student.sigmas
        self.pools = VisitPools(len(self.sigmas) - 1, max(recipe.rollout.pool, recipe.train.batch))
        self.null = data.null.to(model.device)
        draws = (self._rng, self._shared_rng, self._noise, self._score_sigma)
        stage = Stage(recipe, model, data, source, *draws, new_learner)
        self.terms = terms_of(recipe, stage)
        for what in ("question", "gradient"):
            rivals = [name for name, term in self.terms.items() if getattr(type(term), what) is not getattr(Term, what)]
            if len(rivals) > 1:
                raise UserError(f"{' and '.join(rivals)} would each make the {what} of a step; switch all but one off")
        if critic is None and all(type(term).loss is Term.loss for term in self.terms.values()):
            raise UserError("matching.weight is 0 and no other loss is on, so there is nothing to learn from; set one")

    @property
    def shown(self) -> Mapping[str, str]:
        """The numbers that matter most, each with its short name."""
        matched = {"critic/loss": "critic", "score/gap": "gap"} if self.critic else {}
        return {"student/loss": "student", **matched, "student/motion": "motion"}

    @property
    def rounds(self) -> int:
        """The critic's head start, and then the generator's updates."""
        return self.recipe.critic.warmup + self.recipe.train.steps

    def remarks(self) -> list[str]:
        """What is allowed, and rarely meant."""
        r, own = self.recipe.rollout, []
        if r.source == "noised_data" and r.grad_steps == "last" and len(self.sigmas) > 2:
            own = [
                f"rollout.grad_steps last with noised_data trains the student at noise level {self.sigmas[-2]:g} "
                "alone, and no other step of its path is ever asked; use backward_simulation, or random or all"
            ]
        return own + [line for term in self.terms.values() for line in term.remarks()]

    def round(self, index: int) -> dict[str, float]:
        """One generator update (none in the head start) and the updates of critic and terms; returns what to log."""
        rollouts = self._rollouts(index, 0)
        if index >= self.recipe.critic.warmup:
            x0s, logs = self._update_student(rollouts, index)
        else:
            x0s, logs = [self._student_x0(rollout) for rollout in rollouts], {}
        if self.critic is not None:
            left_out = sum(self._remember(*found) for found in zip(rollouts, x0s, strict=True))
            logs["rollout/nonfinite"] = float(left_out)
            for k in range(self.recipe.critic.updates):
                logs |= self._update_critic(self.critic, *self._critic_samples(index, k, rollouts, x0s), index, k)
        one = self._one_of(rollouts, index, "terms")
        for term in self.terms.values():
            logs |= term.learn(index, x0s[one], rollouts[one])
        return logs

    def _rng(self, index: int, *purpose: int | str) -> torch.Generator:
        return generator(self.recipe.seed, index, *purpose, self.rank)

    def _shared_rng(self, index: int, *purpose: int | str) -> torch.Generator:
        return generator(self.recipe.seed, index, *purpose)

    def _noise(self, shape: Sequence[int], index: int, *purpose: int | str) -> Tensor:
        return torch.randn(tuple(shape), generator=self._rng(index, *purpose)).to(self.model.device)

    def _batch(self, index: int, draw: int) -> tuple[Tensor | None, Condition, tuple[int, ...]]:
        """Clips (none with prompts alone), conditions, and shape of the latents of the `draw`-th rollout of a round."""
        batch = self.recipe.train.batch
        draws = 1 + self.recipe.critic.updates if self.recipe.rollout.reuse == "fresh" else 1
        place = (index * draws + draw) * batch
        rows = self.data.rows(place, batch, self.recipe.seed + 7919 * self.rank)
        return *self.data.batch(rows, self.model.device), (batch, *self.data.shape(rows))

    def _rollouts(self, index: int, draw: int) -> list[Rollout]:
        """The `draw`-th rollouts of a round: inputs of the steps that it supervises, on one path."""
        clips, condition, shape = self._batch(index, draw)
        last, which = len(self.sigmas) - 2, self.recipe.rollout.grad_steps
        at_random = draw_exit(last + 1, self._shared_rng(index, draw, "exit"))
        if self.recipe.rollout.source == "noised_data":
            assert clips is not None  # the settings refuse prompts alone
            noise = self._noise(shape, index, draw, "rollout", 0)
            steps = {"random": [at_random], "last": [last], "all": list(range(last + 1))}[which]
            return [noise_data(self.process, clips, noise, self.sigmas, step, condition) for step in steps]

        def predict_x0(x_t: Tensor, sigma: float) -> Tensor:
            return self.model.predict_x0("generator", x_t, sigma, condition)

        def noise_of(step: int) -> Tensor:
            return self._noise(shape, index, draw, "rollout", step)

        path = (predict_x0, self.process, noise_of, self.sigmas, self.recipe.student.sampler)
        if which == "all":
            return simulate_all(*path, condition, clips)
        return [simulate(*path, at_random if which == "random" else last, condition, clips)]

    @torch.no_grad()
    def _student_x0(self, rollout: Rollout) -> Tensor:
        return self.model.predict_x0("generator", rollout.x_t, rollout.sigma, rollout.condition)

    def _update_student(self, rollouts: Sequence[Rollout], index: int) -> tuple[list[Tensor], dict[str, float]]:
        """One update on the mean loss of the rollouts; the samples that it was made on, and what to log."""
        x0s: list[Tensor] = []
        logs: list[dict[str, float]] = [{} for _ in rollouts]

        def losses() -> Iterator[Tensor]:
            for rollout, own in zip(rollouts, logs, strict=True):
                x0 = self.model.predict_x0("generator", rollout.x_t, rollout.sigma, rollout.condition)
                x0s.append(x0.detach())
                yield self._loss(self._step(rollout, x0, index, own)) / len(rollouts)

        found = self.student.update(losses())
        return x0s, mean_of(logs) | found | self._look(x0s[-1], rollouts[-1])

    def _step(self, rollout: Rollout, x0: Tensor, index: int, logs: dict[str, float]) -> StudentStep:
        part = (rollout.step,) if self.recipe.rollout.grad_steps == "all" else ()
        sigma = self._score_sigma(len(x0), index, "generator", *part)
        eps = self._noise(x0.shape, index, "score", *part)
        free = self.model.backbone.free(rollout.condition, x0)
        return StudentStep(index, x0, rollout, sigma, eps, free, logs)

    def _loss(self, step: StudentStep) -> Tensor:
        """Everything that the generator learns from at a step."""
        parts = [self._matched(step)] if self.critic is not None else []
        parts += [loss for term in self.terms.values() if (loss := term.loss(step)) is not None]
        return torch.stack(parts or [0 * step.x0.sum()]).sum()  # a step may be without any

    def _matched(self, step: StudentStep) -> Tensor:
        """The matching loss, or what a term makes of the same scores."""
        m = self.recipe.matching
        noised = self.process.noise(step.x0.detach(), step.eps, step.sigma)
        questions = {name: asked for name, term in self.terms.items() if (asked := term.question(step)) is not None}
        whose, asked = next(iter(questions.items()), ("score", Question(noised)))
        fake, real = self._scores(noised, asked, step.sigma, step.rollout.condition)
        gradient = first(term.gradient(step, fake, real) for term in self.terms.values())
        if gradient is None:
            gradient = matching_gradient(step.x0, fake, real, m.normaliser_floor, step.free)
        if m.ground_truth_weight and step.rollout.data is not None:
            pull = ground_truth_gradient(step.x0, fake, step.rollout.data, m.normaliser_floor, step.free)
            gradient = gradient + m.ground_truth_weight * pull
        gap = watch(step.x0, fake, real)
        # under the name of the term that asked: of two clips it says nothing of the critic
        step.logs.update({f"{whose}/cosine": gap.cosine, f"{whose}/gap": gap.relative})
        step.logs["score/nonfinite"] = float(gap.nonfinite)
        loss = matching_loss(step.x0, gradient, step.free)
        return loss if m.weight == 1 else m.weight * loss

    def _look(self, x0: Tensor, rollout: Rollout) -> dict[str, float]:
        """Numbers that tell how a student fares."""
        diversity = None if rollout.data is None or len(x0) < 2 else relative_diversity(x0, rollout.data)
        return ({} if diversity is None else {"student/diversity": diversity}) | {
            "student/std": float(x0.std()),
            "student/exit": float(rollout.step),
            **motion_of(x0),
        }

    def _score_sigma(self, count: int, index: int, *purpose: int | str) -> Tensor:
        m = self.recipe.matching
        rng = self._rng(index, *purpose, "score time")
        times = score_times(
            count,
            law=m.score_law,
            shift=m.score_shift,
            lowest=m.score_min,
            highest=m.score_max,
            generator=rng,
        )
        return times.to(self.model.device)

    def _scores(self, noised: Tensor, asked: Question, sigma: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """x0 of the fake and of the guided real score."""
        m = self.recipe.matching
        return ask_scores(
            self.model, (noised, asked.x_t), sigma, condition, self.null,
            guidance_scale=m.guidance_scale, batched=m.batched_scores, alpha_weak=asked.alpha_weak,
        )  # fmt: skip

    def _remember(self, rollout: Rollout, x0: Tensor) -> int:
        """Put what the rollout visited into the pool; returns how many samples were not finite and stayed out.

        Steps that the generator is never scored at stay out of it, as the critic would learn them for nothing.
        """
        if self.recipe.rollout.reuse != "visited":
            return 0
        before = () if self.recipe.rollout.grad_steps == "last" else rollout.visited
        visits = enumerate((*before, x0), start=rollout.step - len(before))
        return sum(self.pools.of(x0).add(step, visited, rollout.condition) for step, visited in visits)

    def _critic_samples(
        self, index: int, k: int, rollouts: Sequence[Rollout], x0s: Sequence[Tensor]
    ) -> tuple[Tensor, Condition]:
        """Student samples, as often of each step as the generator is scored at it."""
        match self.recipe.rollout.reuse:
            case "visited":
                return self.pools.of(x0s[-1]).draw(self.recipe.train.batch, self._rng(index, k, "pool"))
            case "exit":
                one = self._one_of(rollouts, index, k)
                return x0s[one], rollouts[one].condition
            case _:
                found = self._rollouts(index, k + 1)
                fresh = found[self._one_of(found, index, k)]
                return self._student_x0(fresh), fresh.condition

    def _one_of(self, rollouts: Sequence[Rollout], index: int, *purpose: int | str) -> int:
        """The place of one of a round's rollouts, all alike likely."""
        return int(torch.randint(len(rollouts), (), generator=self._shared_rng(index, *purpose, "one of")))

    def _update_critic(self, critic: Learner, x0: Tensor, condition: Condition, index: int, k: int) -> dict[str, float]:
        sigma = self._score_sigma(len(x0), index, "critic", k)
        eps = self._noise(x0.shape, index, "critic", k)
        output = self.model.predict("fake", self.process.noise(x0, eps, sigma), sigma, condition)
        free = self.model.backbone.free(condition, x0)
        return critic.update(denoising_loss(self.process, output, x0, eps, sigma, free))

    def learners(self) -> dict[str, Learner]:
        """Everything that is trained, by the name that it has in a checkpoint."""
        own = {"student": self.student, **({"critic": self.critic} if self.critic else {})}
        parts = {name: term.learners for name, term in self.terms.items()}
        return own | {f"{term}/{name}": learner for term, held in parts.items() for name, learner in held.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an exact resume needs, by name."""
        parts = {name: learner.tensors() for name, learner in self.learners().items()}
        parts["pool"] = self.pools.tensors()
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for name, learner in self.learners().items():
            learner.load_tensors(under(tensors, f"{name}/"))
        self.pools.load_tensors(under(tensors, "pool/"), self.model.device)


def terms_of(recipe: Recipe, stage: Stage) -> dict[str, Term]:
    """The terms that a recipe asks for, by the name of their file."""
    found = {name: (kind, getattr(recipe, name)) for name, kind in terms().items()}
    return {name: kind(settings, stage) for name, (kind, settings) in found.items() if kind.is_on(settings)}


def first(found: Iterable[T | None]) -> T | None:
    """The first that is not None."""
    return next((one for one in found if one is not None), None)


def mean_of(logs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over those that have it."""
    names = dict.fromkeys(name for one in logs for name in one)
    return {name: fmean(one[name] for one in logs if name in one) for name in names}
