"""One round of distillation: a rollout, a generator update, and the critic's updates from the same rollout.

This is the wiring between roles, rollout and objectives; the loop around it is the trainer's. A round costs, in forward
passes: the walk to the exit step, one train pass of the generator, three scores in one batch, k train passes of the
critic. Nothing is simulated twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .condition import Condition
from .data.training_set import TrainingSet
from .flow import score_times
from .learner import Learner
from .objectives.distribution_matching import matching_gradient, matching_loss, relative_diversity, watch
from .objectives.flow_matching import denoising_loss
from .objectives.ground_truth import ground_truth_gradient
from .randomness import generator
from .roles import Query, SharedModel
from .rollout import Rollout, VisitPools, draw_exit, noise_data, simulate
from .sampling import guide
from .settings import Recipe


class Distillation:
    """Trains the generator and the critic of a shared model on two time scales (DMD2, arXiv 2405.14867, 4.2).

    Args:
        recipe: what to do.
        model: the base and its roles.
        data: clips (for noised data) and the conditions to roll out on.
        student, critic: the two learners.
        rank: number of this process; draws of samples differ between processes, exit steps do not.
    """

    shown: Mapping[str, str] = {
        "student/loss": "student",
        "critic/loss": "critic",
        "score/gap": "gap",
        "student/motion": "motion",
    }

    def __init__(
        self,
        recipe: Recipe,
        model: SharedModel,
        data: TrainingSet,
        student: Learner,
        critic: Learner,
        rank: int = 0,
    ) -> None:
        self.recipe, self.model, self.data = recipe, model, data
        self.student, self.critic = student, critic
        self.rank = rank
        self.process = model.backbone.process
        self.sigmas = recipe.student.sigmas
        self.pools = VisitPools(len(self.sigmas) - 1, max(recipe.rollout.pool, recipe.train.batch))
        self.null = data.null.to(model.device)

    @property
    def rounds(self) -> int:
        """The critic's head start, and then the generator's updates."""
        return self.recipe.critic.warmup + self.recipe.train.steps

    def round(self, index: int) -> dict[str, float]:
        """One generator update (none in the head start) and the critic's updates; returns what to log."""
        rollout = self._rollout(index, 0)
        if index >= self.recipe.critic.warmup:
            x0, logs = self._update_student(rollout, index)
        else:
            x0, logs = self._student_x0(rollout), {}
        logs["rollout/nonfinite"] = float(self._remember(rollout, x0))
        for k in range(self.recipe.critic.updates):
            logs |= self._update_critic(*self._critic_samples(index, k, rollout, x0), index, k)
        return logs

    def _rng(self, index: int, *purpose: int | str) -> torch.Generator:
        return generator(self.recipe.seed, index, *purpose, self.rank)

    def _noise(self, shape: Sequence[int], index: int, *purpose: int | str) -> Tensor:
        return torch.randn(tuple(shape), generator=self._rng(index, *purpose)).to(self.model.device)

    def _batch(self, index: int, draw: int) -> tuple[Tensor | None, Condition, tuple[int, ...]]:
        """Clips (none with prompts alone), conditions, and shape of the latents of the `draw`-th rollout of a round."""
        batch = self.recipe.train.batch
        draws = 1 + self.recipe.critic.updates if self.recipe.rollout.reuse == "fresh" else 1
        place = (index * draws + draw) * batch
        rows = self.data.rows(place, batch, self.recipe.seed + 7919 * self.rank)
        return *self.data.batch(rows, self.model.device), (batch, *self.data.shape(rows))

    def _rollout(self, index: int, draw: int) -> Rollout:
        """The `draw`-th rollout of a round."""
        latents, condition, shape = self._batch(index, draw)
        step = draw_exit(len(self.sigmas) - 1, generator(self.recipe.seed, index, draw, "exit"))
        if self.recipe.rollout.source == "noised_data":
            assert latents is not None  # the settings refuse prompts alone
            noise = self._noise(shape, index, draw, "rollout", 0)
            return noise_data(self.process, latents, noise, self.sigmas, step, condition)
        return simulate(
            lambda x_t, sigma: self.model.predict_x0("generator", x_t, sigma, condition),
            self.process,
            lambda i: self._noise(shape, index, draw, "rollout", i),
            self.sigmas,
            self.recipe.student.sampler,
            step,
            condition,
        )

    @torch.no_grad()
    def _student_x0(self, rollout: Rollout) -> Tensor:
        return self.model.predict_x0("generator", rollout.x_t, rollout.sigma, rollout.condition)

    def _update_student(self, rollout: Rollout, index: int) -> tuple[Tensor, dict[str, float]]:
        m = self.recipe.matching
        x0 = self.model.predict_x0("generator", rollout.x_t, rollout.sigma, rollout.condition)
        sigma = self._score_sigma(len(x0), index, "generator")
        noised = self.process.noise(x0.detach(), self._noise(x0.shape, index, "score"), sigma)
        fake, real = self._scores(noised, sigma, rollout.condition)
        free = self.model.backbone.free(rollout.condition, x0)
        gradient = matching_gradient(x0, fake, real, m.normaliser_floor, free)
        if m.ground_truth_weight and rollout.data is not None:
            pull = ground_truth_gradient(x0, fake, rollout.data, m.normaliser_floor, free)
            gradient = gradient + m.ground_truth_weight * pull
        logs = self.student.update(matching_loss(x0, gradient))
        gap = watch(x0, fake, real)
        found = x0.detach()
        clips = self._batch(index, 0)[0] if len(found) > 1 else None
        diversity = None if clips is None else relative_diversity(found, clips)
        if diversity is not None:
            logs["student/diversity"] = diversity
        return found, logs | {
            "score/cosine": gap.cosine,
            "score/gap": gap.relative,
            "score/nonfinite": float(gap.nonfinite),
            "student/std": float(found.std()),
            "student/motion": float(found.diff(dim=2).abs().mean()),
            "student/exit": float(rollout.step),
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

    @torch.no_grad()
    def _scores(self, noised: Tensor, sigma: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """x0 of the fake and of the guided real score; one batch, or a pass for each where memory is short."""
        m = self.recipe.matching
        queries = [Query("fake", noised, sigma, condition), Query("real", noised, sigma, condition)]
        if m.guidance_scale != 1.0:
            queries.append(Query("real", noised, sigma, condition.instead(self.null)))
        if m.batched_scores:
            fake, real, *uncond = self.model.predict_x0_together(queries)
        else:
            fake, real, *uncond = [self.model.predict_x0(q.role, q.x_t, q.sigma, q.condition) for q in queries]
        return fake, guide(real, uncond[0], m.guidance_scale) if uncond else real

    def _remember(self, rollout: Rollout, x0: Tensor) -> int:
        """Put what the rollout visited into the pool; returns how many samples were not finite and stayed out."""
        if self.recipe.rollout.reuse != "visited":
            return 0
        first = rollout.step - len(rollout.visited)  # noised data visit their exit step alone
        visits = enumerate((*rollout.visited, x0), start=first)
        return sum(self.pools.of(x0).add(step, visited, rollout.condition) for step, visited in visits)

    def _critic_samples(self, index: int, k: int, rollout: Rollout, x0: Tensor) -> tuple[Tensor, Condition]:
        match self.recipe.rollout.reuse:
            case "visited":
                return self.pools.of(x0).draw(self.recipe.train.batch, self._rng(index, k, "pool"))
            case "exit":
                return x0, rollout.condition
            case _:
                fresh = self._rollout(index, k + 1)
                return self._student_x0(fresh), fresh.condition

    def _update_critic(self, x0: Tensor, condition: Condition, index: int, k: int) -> dict[str, float]:
        sigma = self._score_sigma(len(x0), index, "critic", k)
        eps = self._noise(x0.shape, index, "critic", k)
        output = self.model.predict("fake", self.process.noise(x0, eps, sigma), sigma, condition)
        free = self.model.backbone.free(condition, x0)
        return self.critic.update(denoising_loss(self.process, output, x0, eps, sigma, free))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an exact resume needs, by name."""
        parts = {
            "student": self.student.tensors(),
            "critic": self.critic.tensors(),
            "pool": self.pools.tensors(),
        }
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self.student.load_tensors(under(tensors, "student/"))
        self.critic.load_tensors(under(tensors, "critic/"))
        self.pools.load_tensors(under(tensors, "pool/"), self.model.device)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
