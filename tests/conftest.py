"""A tiny real Wan, tiny clips, and everything that a round of training needs, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_parts import modules
from door_parts import ALL_PANELS, Door, panels_drawn
from kind import Conditions, Models, Programs, Recipes, program_of, with_roles
from torch import nn
from wan_kinds import condition_of, new_wan

from w2svd_core.config import check_recipe
from w2svd_core.data.latents import LatentSet
from w2svd_core.distillation import Distillation
from w2svd_core.errors import guarded
from w2svd_core.pretraining import FlowMatching
from w2svd_core.settings import Recipe

torch.set_num_threads(1)  # two processes run the tests; more threads would only wait for each other


CLIP = (16, 3, 4, 4)  # c f h w: 12 tokens


@pytest.fixture(scope="session")
def pristine() -> nn.Module:
    """The smallest text-to-video `WanTransformer3DModel`; no adapter ever goes into it."""
    return new_wan()


@pytest.fixture(scope="session")
def new_shared(pristine: nn.Module) -> Models:
    """Makes a base with its roles; the adapters do something already unless `fresh`."""
    return partial(with_roles, pristine)


@pytest.fixture(scope="session")
def texts() -> Conditions:
    """Makes conditions of random text embeddings."""
    return partial(condition_of, "t2v")


@pytest.fixture(scope="session")
def clips(texts: Conditions) -> LatentSet:
    """Seven clips of random latents; the empty prompt is a real embedding, never zeros."""
    latents = torch.randn(7, *CLIP, generator=torch.Generator().manual_seed(2))
    return LatentSet(latents, texts(7), texts(1, seed=1), tuple(f"clip {i}" for i in range(7)))


@pytest.fixture(scope="session")
def new_recipe() -> Recipes:
    """Makes a small recipe; settings by key, such as `{"student.lr": 0.01}`."""

    def make(changes: dict[str, Any] | None = None) -> Recipe:
        small = {
            "train.batch": 2, "train.steps": 4, "student.rank": 4, "critic.rank": 4, "student.lr": 1e-3,
            "critic.lr": 1e-3, "critic.updates": 2, "critic.warmup": 1, "rollout.pool": 4,
        }  # fmt: skip
        return check_recipe(small | (changes or {}), "in a test")

    return make


@pytest.fixture(scope="session")
def new_program(pristine: nn.Module, clips: LatentSet) -> Programs:
    """Makes the program of a recipe on a new tiny model, as `assembly` does."""

    def make(recipe: Recipe, **model_settings: Any) -> Distillation | FlowMatching:
        return program_of(recipe, pristine, clips, **model_settings)

    return make


@pytest.fixture
def door(capsys: pytest.CaptureFixture[str]) -> Door:
    """Call a door as the command line does: exit code, stdout, stderr."""

    def call(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = guarded(lambda: main([str(argument) for argument in arguments]))
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


@pytest.fixture(scope="session", autouse=True)
def few_panels() -> Iterator[None]:
    """Reports of runs have two small figures here: most of a short run's time would be theirs. See `all_panels`."""
    with panels_drawn({name: ALL_PANELS[name][:1] for name in ("losses", "guard")}):
        yield


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The modules of the benchmark, by name."""
    yield from modules()


@pytest.fixture
def costs(bench: Any) -> Any:
    """Instead of a count of FLOPs: a head start of 20, an update of 2."""
    return SimpleNamespace(of=lambda recipe, models: bench.budget.Cost(20.0, 2.0))
