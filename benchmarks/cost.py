"""What the shared base costs: `python benchmarks/cost.py`.

Prints the time of a role switch, of batched against separate scores, and the forward passes that one
generator update takes together with its critic updates. The last is counted on the meta device from the
operations that a round of `Distillation` executes at Wan-14B's size, without a weight in memory.

All blocks of the model are alike, except that the first one sends no gradient on. A count is therefore exactly
linear in the depth: rounds run with one block and with two, and the line is drawn to 40. `--whole` runs all
40, and a test compares the two.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest import mock

import torch
from flops import flops
from torch import Tensor

from w2svd_core.assembly import job_of
from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Architecture
from w2svd_core.condition import Condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.distillation import Distillation
from w2svd_core.geometry import LatentGeometry
from w2svd_core.roles import Query, SharedModel
from w2svd_core.rollout import exit_law
from w2svd_core.settings import Critic, Matching, Recipe, Rollout, Student, Train

REUSES = ("visited", "exit", "fresh")
MOST_FORWARDS = 28.0  # of a round with its 5 critic updates
MOST_OF_FRESH = 0.7


@dataclass(frozen=True)
class Size:
    """A model and what it is trained on.

    Attributes:
        latents: (c, f, h, w) of a clip.
        tokens: length of the prompt.
        rank: of both adapters.
    """

    model: Architecture
    latents: tuple[int, int, int, int]
    tokens: int
    rank: int

    def deep(self, layers: int) -> Size:
        """The same with so many blocks."""
        return replace(self, model=replace(self.model, layers=layers))

    def condition(self, rows: int, device: str) -> Condition:
        """Empty prompts."""
        return Condition({"text": torch.zeros(rows, self.tokens, self.model.text_dim, device=device)})


WAN_14B = Size(  # 832 x 480, 81 frames
    Architecture(heads=40, head_dim=128, ffn_dim=13824, layers=40, text_dim=4096),
    latents=LatentGeometry(channels=16, space=8, time=4, patch=2).latent_shape(81, 480, 832),
    tokens=512,
    rank=64,
)
SWITCHED = Size(Architecture(1, 12, 16, 40, 16), (16, 1, 4, 4), tokens=4, rank=4)
SCORED = {  # model width -> size
    24: Size(Architecture(1, 24, 48, 3, 32), (16, 3, 8, 8), tokens=8, rank=4),
    256: Size(Architecture(2, 128, 512, 3, 32), (16, 3, 8, 8), tokens=8, rank=4),
}


def shared_model(size: Size, device: str = "cpu", checkpointing: bool = False) -> SharedModel:
    """A shared model with random weights (no weights at all on meta)."""
    family = backbone("wan")
    with torch.random.fork_rng(devices=[]), torch.device(device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        torch.manual_seed(0)
        base = family.build(size.model)
        return SharedModel(family, base, critic_rank=size.rank, student_rank=size.rank, checkpointing=checkpointing)


def fastest(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The least milliseconds of each, taken in turns so that a busy machine hits all alike."""
    least = [float("inf")] * len(runs)
    for _ in range(repeats):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            least[i] = min(least[i], 1000 * (time.perf_counter() - start))
    return least


def switch_cost(repeats: int = 30) -> tuple[int, float, float]:
    """Adapted layers, and ms to take a role and give it back: ours, and peft's public `set_adapter`."""
    from peft.functional import set_adapter

    model = shared_model(SWITCHED)

    def ours() -> None:
        with model._using({"fake": 1.0}):
            pass

    def public() -> None:
        set_adapter(model.base, "fake")
        set_adapter(model.base, "generator")

    cached, walked = fastest([ours, public], repeats)
    return len(model._layers), cached, walked


@torch.no_grad()
def scoring_cost(size: Size, rows: int = 4, repeats: int = 20) -> tuple[float, float]:
    """ms of the fake, real and real-unconditional scores of `rows` clips: three passes, and one batch."""
    model = shared_model(size)
    x_t, sigma = torch.randn(rows, *size.latents), torch.full((rows,), 0.5)
    condition = size.condition(rows, "cpu")
    queries = [Query(role, x_t, sigma, condition) for role in ("fake", "real", "real")]

    def separate() -> list[Tensor]:
        return [model.predict_x0(q.role, q.x_t, q.sigma, q.condition) for q in queries]

    alone, batched = fastest([separate, lambda: model.predict_x0_together(queries)], repeats)
    return alone, batched


def distillation(size: Size, model: SharedModel, reuse: Any, updates: int = 5) -> Distillation:
    """A distillation with batch 1 and guided scores on an existing model."""
    recipe = Recipe(
        student=Student(rank=size.rank),
        critic=Critic(rank=size.rank, updates=updates, warmup=0),
        matching=Matching(guidance_scale=3.5),
        rollout=Rollout(reuse=reuse),
        train=Train(batch=1),
    )
    data = LatentSet(torch.zeros(1, *size.latents), size.condition(1, "cpu"), size.condition(1, "cpu"), ("",))

    program = job_of(recipe, model, cast(Any, None), data).program
    assert isinstance(program, Distillation)
    return program


@contextmanager
def leaving_at(step: int) -> Iterator[None]:
    """Every rollout inside exits at `step`, instead of at a drawn one."""
    with mock.patch("w2svd_core.distillation.draw_exit", lambda steps, generator: step):
        yield


def round_flops(size: Size, model: SharedModel, reuse: str) -> float:
    """Executed FLOPs of a round, mean over the exit law; rollouts add up, so all may leave at the same step."""
    total = 0.0
    job = distillation(size, model, reuse)
    for step, share in enumerate(exit_law(len(job.sigmas) - 1).tolist()):
        with leaving_at(step):
            total += share * flops(lambda: job.round(0))
    return total


@dataclass(frozen=True)
class Passes:
    """Executed FLOPs.

    Attributes:
        forward: one pass of the base, no adapter, no gradient: the unit F.
        adapted: the same with an adapter.
        train: forward and backward of an adapter, with checkpointing.
        rounds: a generator update with its critic updates, by `rollout.reuse`.
    """

    forward: float
    adapted: float
    train: float
    rounds: dict[str, float]

    def line_to(self, other: Passes, layers: int) -> Passes:
        """The counts at `layers` blocks; self holds those of one block, `other` those of two."""

        def at(one: float, two: float) -> float:
            return one + (layers - 1) * (two - one)

        return Passes(
            at(self.forward, other.forward),
            at(self.adapted, other.adapted),
            at(self.train, other.train),
            {reuse: at(found, other.rounds[reuse]) for reuse, found in self.rounds.items()},
        )


def count_passes(size: Size, device: str = "meta", reuses: Sequence[str] = REUSES) -> Passes:
    """Count every pass by running it at the size's own depth."""
    model = shared_model(size, device, checkpointing=True)
    x_t, condition = torch.zeros(1, *size.latents, device=device), size.condition(1, device)

    def forward(role: Any) -> Tensor:
        with torch.no_grad():
            return model.predict(role, x_t, 0.5, condition)

    return Passes(
        forward=flops(lambda: forward("teacher")),
        adapted=flops(lambda: forward("generator")),
        train=flops(lambda: model.predict("generator", x_t, 0.5, condition).sum().backward()),
        rounds={reuse: round_flops(size, model, reuse) for reuse in reuses},
    )


def passes(size: Size, device: str = "meta", reuses: Sequence[str] = REUSES) -> Passes:
    """The same as `count_passes`, from one block and two."""
    one, two = (count_passes(size.deep(n), device, reuses) for n in (1, 2))
    return one.line_to(two, size.model.layers)


def table(whole: bool = False) -> Iterator[str]:
    """The lines that are printed."""
    layers, ours, public = switch_cost()
    yield f"| role switch, there and back, {layers} adapted layers | ms |"
    yield "| --- | ---: |"
    yield f"| cached list | {ours:.3f} |"
    yield f"| peft's `set_adapter` | {public:.1f} |"
    yield ""
    yield "| three scores, 4 clips of 48 tokens | separate, ms | one batch, ms | separate / batch |"
    yield "| --- | ---: | ---: | ---: |"
    for width, size in SCORED.items():
        alone, batched = scoring_cost(size)
        yield f"| width {width} | {alone:.1f} | {batched:.1f} | {alone / batched:.2f} |"
    yield ""
    yield from counted(count_passes(WAN_14B) if whole else passes(WAN_14B))


def counted(found: Passes) -> Iterator[str]:
    """The lines of the counts, in forward passes F of the base alone."""
    unit, fresh = found.forward, found.rounds["fresh"]
    yield "| Wan-14B, 832x480, 81 frames, rank 64, checkpointing, guidance | F | share of fresh |"
    yield "| --- | ---: | ---: |"
    yield f"| forward of the base alone ({unit / 1e12:.0f} TFLOP) | 1.00 | |"
    yield f"| forward with an adapter | {found.adapted / unit:.2f} | |"
    yield f"| forward and backward of an adapter | {found.train / unit:.2f} | |"
    for reuse, cost in found.rounds.items():
        yield f"| generator update and 5 critic updates, {reuse} | {cost / unit:.2f} | {cost / fresh:.3f} |"
    cost = found.rounds["visited"]
    yield ""
    few, fewer = cost <= MOST_FORWARDS * unit, cost <= MOST_OF_FRESH * fresh
    yield f"At most {MOST_FORWARDS:g} F with visited samples: {'yes' if few else 'NO'}."
    yield f"At most {MOST_OF_FRESH:g} of fresh rollouts: {'yes' if fewer else 'NO'}."


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whole", action="store_true", help="run all 40 blocks, which takes half an hour")
    for line in table(parser.parse_args().whole):
        print(line, flush=True)


if __name__ == "__main__":
    main()
