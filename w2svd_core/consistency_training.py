"""One round of consistency distillation (LCM, arXiv 2310.04378): a teacher's step, a target, an update.

A round costs, in forward passes of a batch: the teacher's (two in one where it is guided), the target's, and one train
pass of the student. No critic, no rollout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .condition import Condition
from .data.training_set import TrainingSet
from .learner import Learner, under
from .numbers import motion_of
from .objectives.consistency import Settings, grid, neighbour, pseudo_huber, teacher_step, with_boundary
from .randomness import generator
from .roles import GENERATOR, Query, SharedModel, swapped_in
from .sampling import guide
from .settings import Recipe


class Consistency:
    """Trains the generator role to say the same at all points of the teacher's path.

    Args:
        recipe: what to do.
        model: the base and its roles; no critic is asked.
        data: clips.
        student: the generator's learner.
        rank: number of this process; its draws are its own.

    Attributes:
        levels: sigmas of the grid, (points + 1,), from the student's highest level to 0: what is above it is never
            sampled, and a noise model knows nothing of x0 at sigma 1.
        target: weights of the targets, an average of the student's; empty = the student as it is.
    """

    shown: Mapping[str, str] = {"student/loss": "loss", "student/motion": "motion"}

    def __init__(self, recipe: Recipe, model: SharedModel, data: TrainingSet, student: Learner, rank: int = 0) -> None:
        self.recipe, self.model, self.data, self.student, self.rank = recipe, model, data, student, rank
        self.settings = settings_of(recipe)
        s = self.settings
        self.null = data.null.to(model.device)
        self.levels = torch.tensor(grid(s.points, s.shift, recipe.student.sigmas[0]), device=model.device)
        own = student.parameters if s.target_ema else {}
        self.target = {name: weight.detach().clone() for name, weight in own.items()}

    @property
    def rounds(self) -> int:
        """One round is one update."""
        return self.recipe.train.steps

    def round(self, index: int) -> dict[str, float]:
        """One update of the student and of the average behind its targets; returns what to log."""
        t, process, device = self.recipe.train, self.model.backbone.process, self.model.device
        rng = generator(self.recipe.seed, index, "consistency", self.rank)
        rows = self.data.rows(index * t.batch, t.batch, self.recipe.seed + 7919 * self.rank)
        clips, condition = self.data.batch(rows, device)
        assert clips is not None  # the settings refuse prompts alone
        start = torch.randint(self.settings.points, (t.batch,), generator=rng).to(device)
        end = neighbour(start, self.settings.skip, self.settings.points)
        sigma, next_sigma = self.levels[start], self.levels[end]
        eps = torch.randn(clips.shape, generator=rng).to(device)
        x_t = process.noise(clips, eps, sigma)
        target = self._target(x_t, sigma, next_sigma, condition)  # before the student's graph: weights are swapped
        x0 = self.model.predict_x0(GENERATOR, x_t, sigma, condition)
        free = self.model.backbone.free(condition, clips)
        logs = self.student.update(pseudo_huber(x0, target, self.settings.huber, free))
        if not logs["student/skipped"]:
            self._follow()
        return logs | {
            "student/std": float(x0.detach().std()),
            **motion_of(x0.detach()),
        }

    @torch.no_grad()
    def _target(self, x_t: Tensor, sigma: Tensor, next_sigma: Tensor, condition: Condition) -> Tensor:
        """What the target says one teacher step further on."""
        further = teacher_step(self.model.backbone.process, x_t, self._taught(x_t, sigma, condition), sigma, next_sigma)
        with swapped_in(self.target, self.model) if self.target else contextlib.nullcontext():
            x0 = self.model.predict_x0(GENERATOR, further, next_sigma, condition)
        return with_boundary(further, x0, next_sigma)

    def _taught(self, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The clean sample that the guided teacher sees (LCM, 4.2), from one pass."""
        scale = self.settings.guidance_scale
        asked = [condition] if scale == 1 else [condition, condition.instead(self.null)]
        cond, *uncond = self.model.predict_x0_together([Query("teacher", x_t, sigma, c) for c in asked])
        return guide(cond, uncond[0], scale) if uncond else cond

    @torch.no_grad()
    def _follow(self) -> None:
        """target = decay * target + (1 - decay) * student, after each update (LCM algorithm 1)."""
        for name, mean in self.target.items():
            mean.lerp_(self.student.parameters[name].detach(), 1 - self.settings.target_ema)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an exact resume needs, by name."""
        parts = {"student": self.student.tensors(), "target": self.target}
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self.student.load_tensors(under(tensors, "student/"))
        for name, mean in self.target.items():
            mean.copy_(tensors[f"target/{name}"])


def settings_of(recipe: Any) -> Settings:
    """LCM's section of a recipe."""
    found: Settings = recipe.consistency
    return found
