"""Where student samples come from, and how often one rollout is used.

Backward simulation (DMD2, arXiv 2405.14867, 4.5) walks the student's own sampler from pure noise and stops at the exit
step, the one that is trained. Noised data (W2SVD's figure) puts noise on a real clip instead. A rollout is paid for
once: the x0 that it visits go into a pool from which the critic draws, with steps as frequent as the exit law has them.
Early steps are visited more often than they are exits, so a plain draw would over-train the critic on blurry samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .condition import Condition
from .errors import UserError
from .flow import Process
from .sampling import NoiseOfStep, PredictX0, Sampler, walk


@dataclass(frozen=True)
class Rollout:
    """A student's input at its exit step.

    Attributes:
        x_t: `b c f h w`, no gradient.
        step: index of the exit step.
        sigma: its noise level.
        condition: b rows.
        visited: x0 of the steps before the exit, `b c f h w` each.
        data: clips of the same rows, which noised data were made from; None with prompts alone.
    """

    x_t: Tensor
    step: int
    sigma: float
    condition: Condition
    visited: tuple[Tensor, ...] = ()
    data: Tensor | None = None


def exit_law(steps: int) -> Tensor:
    """How likely each step is to be the exit: all alike, as in DMD2 and Self-Forcing."""
    return torch.full((steps,), 1.0 / steps)


def draw_exit(steps: int, generator: torch.Generator) -> int:
    """The exit step of a rollout, one for the whole batch and for all processes."""
    return int(torch.multinomial(exit_law(steps), 1, generator=generator))


@torch.no_grad()
def simulate(
    predict_x0: PredictX0,
    process: Process,
    noise: NoiseOfStep,
    sigmas: Sequence[float],
    sampler: Sampler,
    step: int,
    condition: Condition,
    data: Tensor | None = None,
) -> Rollout:
    """The student's own path from noise to the input of its exit step; it goes no further."""
    x_t, visited = walk(predict_x0, process, noise, sigmas, sampler, steps=step)
    return Rollout(x_t, step, sigmas[step], condition, tuple(visited), data)


@torch.no_grad()
def simulate_all(
    predict_x0: PredictX0,
    process: Process,
    noise: NoiseOfStep,
    sigmas: Sequence[float],
    sampler: Sampler,
    condition: Condition,
    data: Tensor | None = None,
) -> list[Rollout]:
    """The inputs of every step of one path, first to last; none counts what it visited, since each is an exit."""
    inputs: list[Tensor] = []

    def noted(x_t: Tensor, sigma: float) -> Tensor:
        inputs.append(x_t)
        return predict_x0(x_t, sigma)

    last, _ = walk(noted, process, noise, sigmas, sampler, steps=len(sigmas) - 2)
    return [Rollout(x_t, i, sigmas[i], condition, data=data) for i, x_t in enumerate([*inputs, last])]


def noise_data(
    process: Process, data: Tensor, noise: Tensor, sigmas: Sequence[float], step: int, condition: Condition
) -> Rollout:
    """A real clip at the exit step's noise level."""
    return Rollout(process.noise(data, noise, sigmas[step]), step, sigmas[step], condition, data=data)


class VisitPool:
    """The newest `rows` student samples of each step, first in, first out.

    They lie in the machine's memory and go back to where they came from a few rows at a time: those of a 14B model of
    several shapes are gigabytes.
    """

    def __init__(self, steps: int, rows: int) -> None:
        self.rows = rows
        self._device = torch.device("cpu")
        self._x0: list[Tensor | None] = [None] * steps
        self._condition: list[Condition | None] = [None] * steps

    def add(self, step: int, x0: Tensor, condition: Condition) -> int:
        """Put the finite samples of a step in; the oldest beyond `rows` leave. Returns how many were left out."""
        old, known = self._x0[step], self._condition[step]
        self._device, away = x0.device, torch.device("meta" if x0.is_meta else "cpu")
        x0, condition = x0.detach().to(away), condition.to(away)
        sound = x0.flatten(1).isfinite().all(1)
        left_out = 0 if x0.is_meta else int((~sound).sum())  # on the meta device, where FLOPs are counted, is no value
        if left_out:
            x0, condition = x0[sound], condition[sound]
        self._x0[step] = (x0 if old is None else torch.cat([old, x0]))[-self.rows :]
        self._condition[step] = (condition if known is None else Condition.cat([known, condition]))[-self.rows :]
        return left_out

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """`count` samples, each row's step drawn from the exit law among the steps that were visited so far."""
        visited = [i for i, x0 in enumerate(self._x0) if x0 is not None]
        held = [i for i in visited if self._condition[i]]
        if not visited:
            raise ValueError("the pool is empty: make a rollout first")
        if not held:
            raise UserError(
                "every sample of the student is non-finite, so the critic has nothing to learn from; check the model "
                "in model.path, or set model.precision to fp32"
            )
        law = exit_law(len(self._x0))[held]
        steps = torch.multinomial(law, count, replacement=True, generator=generator).tolist()
        x0s, conditions = [], []
        for step in steps:
            x0, condition = self._x0[held[step]], self._condition[held[step]]
            assert x0 is not None and condition is not None
            row = int(torch.randint(len(x0), (1,), generator=generator))
            x0s.append(x0[row : row + 1])
            conditions.append(condition[row : row + 1])
        return torch.cat(x0s).to(self._device), Condition.cat(conditions).to(self._device)

    def tensors(self) -> dict[str, Tensor]:
        """Everything in the pool, by name."""
        out: dict[str, Tensor] = {}
        for step, (x0, condition) in enumerate(zip(self._x0, self._condition, strict=True)):
            if x0 is not None and condition is not None:
                out[f"{step}/x0"] = x0
                out |= {f"{step}/condition/{name}": value for name, value in condition.fields.items()}
        return out

    def load_tensors(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Take back what `tensors` gave; it is drawn onto this device from now on."""
        self._device = device
        for step in range(len(self._x0)):
            if f"{step}/x0" in tensors:
                start = f"{step}/condition/"
                fields = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
                self._x0[step], self._condition[step] = tensors[f"{step}/x0"], Condition(fields)


class VisitPools:
    """A pool for each shape of clips: samples of two buckets make no batch."""

    def __init__(self, steps: int, rows: int) -> None:
        self._steps, self._rows = steps, rows
        self._pools: dict[str, VisitPool] = {}

    def of(self, x0: Tensor) -> VisitPool:
        """The pool of the samples that are shaped as these, `b c f h w`."""
        return self._at("x".join(str(size) for size in x0.shape[1:]))

    def tensors(self) -> dict[str, Tensor]:
        """Everything in all pools, by name."""
        return {f"{shape}/{name}": t for shape, pool in self._pools.items() for name, t in pool.tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Take back what `tensors` gave."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            shape, _, inner = name.partition("/")
            parts.setdefault(shape, {})[inner] = tensor
        for shape, held in parts.items():
            self._at(shape).load_tensors(held, device)

    def _at(self, shape: str) -> VisitPool:
        return self._pools.setdefault(shape, VisitPool(self._steps, self._rows))
