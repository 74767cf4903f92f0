"""One round of flow matching: how the bundled teacher was made, and how a fine-tune is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .data.training_set import TrainingSet
from .flow import score_times
from .learner import Learner, under
from .objectives.flow_matching import denoising_loss
from .randomness import generator
from .roles import SharedModel
from .settings import Recipe


class FlowMatching:
    """Trains the generator role of a model on clips (arXiv 2210.02747), leaving out some captions for guidance."""

    shown: Mapping[str, str] = {"student/loss": "loss"}

    def __init__(self, recipe: Recipe, model: SharedModel, data: TrainingSet, student: Learner, rank: int = 0) -> None:
        self.recipe, self.model, self.data, self.student, self.rank = recipe, model, data, student, rank
        self.empty = data.empty.to(model.device)  # a negative prompt stays what no clip was ever called

    @property
    def rounds(self) -> int:
        """One round is one update."""
        return self.recipe.train.steps

    def round(self, index: int) -> dict[str, float]:
        """One update; returns what to log."""
        t, process = self.recipe.train, self.model.backbone.process
        rng = generator(self.recipe.seed, index, "flow matching", self.rank)
        rows = self.data.rows(index * t.batch, t.batch, self.recipe.seed + 7919 * self.rank)
        latents, condition = self.data.batch(rows, self.model.device)
        assert latents is not None  # the settings refuse prompts alone
        named = (torch.rand(t.batch, generator=rng) >= t.condition_dropout).to(self.model.device)
        condition = condition.where(named, condition.instead(self.empty))
        sigma = score_times(t.batch, law=t.time_law, shift=t.time_shift, lowest=0.001, highest=1.0, generator=rng)
        sigma = sigma.to(self.model.device)
        eps = torch.randn(latents.shape, generator=rng).to(self.model.device)
        x_t, told = process.noise(latents, eps, sigma), self.recipe.embedded.clips  # clips are no guided samples
        output = self.model.predict("generator", x_t, sigma, condition, embedded=told)
        free = self.model.backbone.free(condition, latents)
        return self.student.update(denoising_loss(process, output, latents, eps, sigma, free))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an exact resume needs, by name."""
        return {f"student/{name}": t for name, t in self.student.tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self.student.load_tensors(under(tensors, "student/"))
