"""What a recipe's training costs, and how many updates a budget of FLOPs pays for.

Rounds of the recipe's own program run at the size of its own model, and every forward and backward pass of every
network in them is counted (`flops.py`). They run on the CPU with two clips, because FLOPs are proportional to the clips
of a batch: that takes seconds, where the meta device takes a minute and a term that decodes pixels could not run at all
(a test holds the two against each other). Rollouts leave at the student's first step and at its last; between the two a
round is a straight line. What a program does late in a run is taken for the whole run: a term that sets in later is
charged from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from cells import unusual_settings
from cost import leaving_at
from flops import flops

from w2svd_core.assembly import encoder_source, job_of, load_base, roles_of, training_set
from w2svd_core.errors import UserError
from w2svd_core.files import write_safetensors
from w2svd_core.hashing import value_hash
from w2svd_core.rollout import exit_law
from w2svd_core.settings import Recipe

COUNTED_CLIPS = 8  # that a count draws; what they show makes no difference
COUNTED_BATCH = 2
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cost:
    """FLOPs of a training.

    Attributes:
        head_start: of all rounds before the first generator update.
        update: of a round with one.
    """

    head_start: float
    update: float

    def of(self, steps: int) -> float:
        """A whole training."""
        return self.head_start + steps * self.update

    def steps(self, budget: float) -> int:
        """The updates of the training that comes nearest to a budget.

        Raises:
            UserError: not even the head start is paid for.
        """
        steps = round((budget - self.head_start) / self.update)
        if steps < 1:
            raise UserError(
                f"the budget of {budget:.3g} FLOPs is spent before the first update ({self.head_start:.3g} of head "
                "start); raise --budget, or lower critic.warmup"
            )
        return steps


def cost_of(recipe: Recipe, device: torch.device = CPU) -> Cost:
    """Count a recipe, whatever its `train.steps`.

    Args:
        recipe: of a training.
        device: CPU or meta; the number is the same.

    Raises:
        UserError: its model or its clips do not serve.
    """
    small = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"clips": min(recipe.data.clips, COUNTED_CLIPS)}),
            "model": recipe.model.model_copy(update={"compile": False}),
            "train": recipe.train.model_copy(update={"batch": COUNTED_BATCH}),
        }
    )
    source = encoder_source(small.model, CPU)
    data = training_set(small, source, lambda what, done, count: None)
    model = roles_of(small, *load_base(small.model, source, small.seed))
    for network in (model.base, model.copy, model.critic_copy):
        if network is not None:
            network.to(device)
    rounds = job_of(small, model, source, data).program.rounds
    before = rounds - small.train.steps

    def count(index: int) -> float:
        def run() -> int:
            job = job_of(small, model, source, data)
            return flops(lambda: job.program.round(index))

        return over_exits(len(small.student.sigmas) - 1, run) * recipe.train.batch / COUNTED_BATCH

    return Cost(before * count(0) if before else 0.0, count(rounds - 1))


def untrained_file(recipe: Recipe, folder: Path) -> Path:
    """The model that a recipe begins with, as a file; written once."""
    path = folder / f"{recipe.name}-{value_hash(unusual_settings(recipe))[:12]}.safetensors"
    if not path.is_file():
        family, model = load_base(recipe.model, encoder_source(recipe.model, CPU), recipe.seed)
        write_safetensors(path, dict(family.native_state(model)), dict(family.native_metadata(model)))
    return path


def over_exits(steps: int, count: Callable[[], int]) -> float:
    """The mean of a count over the exit law, from the first exit and the last."""
    with leaving_at(0):
        first = count()
    if steps == 1:
        return float(first)
    with leaving_at(steps - 1):
        last = count()
    mean: float = sum(step * share for step, share in enumerate(exit_law(steps).tolist()))
    return first + (last - first) * mean / (steps - 1)
