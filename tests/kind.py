"""What the tests of every model family need of one kind of model; `kinds` lists them all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from w2svd_core.assembly import embedded_guidance, job_of
from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Backbone
from w2svd_core.condition import GUIDANCE, Condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.roles import SharedModel
from w2svd_core.settings import Model, Recipe
from w2svd_core.trainer import Program

Conditions = Callable[..., Condition]
Models = Callable[..., SharedModel]
Recipes = Callable[..., Recipe]
Programs = Callable[..., Any]


@dataclass(frozen=True)
class Asked:
    """What a pipeline is asked.

    Attributes:
        prompts: one for each clip.
        negative: that guidance leads away from.
        noise: the first latents `b c f h w`.
        frames: of the clips.
        steps: of the sampler.
        guidance: u + g(c - u).
        embedded: that a model is told which takes it as an input.
        picture: the first frame, or None.
    """

    prompts: tuple[str, ...]
    negative: str
    noise: Tensor
    frames: int
    steps: int
    guidance: float
    embedded: float
    picture: Any


class Tiny(Protocol):
    """A whole pipeline of the real classes on disk.

    Attributes:
        kind: as `Kind.name`.
        folder: of the diffusers pipeline.
        files: the same weights as native single files, by the names of the pipeline's folders; empty without a reader.
        size: height and width of a clip of few tokens.
    """

    kind: str
    folder: Path
    files: Mapping[str, Path]

    @property
    def size(self) -> tuple[int, int]: ...

    def model(self, **changes: Any) -> Model:
        """The section of a recipe that names the folder."""
        ...

    def model_of_files(self, **changes: Any) -> Model:
        """The section of a recipe that names the single files."""
        ...

    def pipeline(self, image: bool | None = None) -> Any:
        """diffusers' own pipeline; with `image`, the one that starts from a picture."""
        ...

    def reference(self, pipeline: Any, asked: Asked) -> Tensor:
        """The latents that the pipeline makes, normalised as the model's are."""
        ...


@dataclass(frozen=True)
class Kind:
    """One kind of a family's models, at its smallest.

    Attributes:
        family: as in a recipe's `model.family`.
        name: of the kind, among its family's.
        new: makes the real class, always with the same weights; keywords change its sizes.
        points: noised latents `rows c f h w` of rows and seed.
        condition: random embeddings of rows and seed, all that the model needs.
        by_hand: the real class called as diffusers' pipelines call it: model, x_t, sigma (b,), condition -> output.
        telling: sizes with which a file says without a header what model it is; None for a family that needs one.
        native: the weights under the names of native files.
        idle: beginnings of adapters' and weights' names that get no gradient, because the model drops what they make.
        picture: the condition's field that shows the first frame, "" for a model of text alone.
        held: x0 itself holds that frame.
        either: the frame may be left out.
        lora_pipeline: diffusers' pipeline round a model, which loads LoRA files.
        native_loras: it reads native ones, too.
        recipe, finetune: of the kind, and of its teacher's fine-tune.
        tiny: the whole pipeline on disk.
        files: it is there as native single files, too.
    """

    family: str
    name: str
    new: Callable[..., nn.Module]
    points: Callable[..., Tensor]
    condition: Conditions
    by_hand: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
    telling: Mapping[str, Any] | None = None
    native: Callable[[nn.Module], Mapping[str, Tensor]] | None = None
    idle: tuple[str, ...] = ()
    picture: str = ""
    held: bool = False
    either: bool = False
    lora_pipeline: Callable[[nn.Module], Any] | None = None
    native_loras: bool = False
    recipe: str = ""
    finetune: str = ""
    tiny: Callable[[], Tiny] | None = None
    files: bool = False

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"

    @property
    def backbone(self) -> Backbone:
        return backbone(self.family)

    def null(self) -> Condition:
        """What guidance leaves out, one row: the words alone."""
        fields = self.condition(1, seed=1).fields
        return Condition({name: value for name, value in fields.items() if name in WORDS})

    def clips(self, count: int = 5) -> LatentSet:
        """Clips of random latents; an embedded guidance is the roles' affair."""
        fields = {name: value for name, value in self.condition(count).fields.items() if name != GUIDANCE}
        captions = tuple(f"clip {number}" for number in range(count))
        return LatentSet(self.points(count, seed=2), Condition(fields), self.null(), captions)

    def with_roles(self, model: nn.Module | None = None, fresh: bool = False, **settings: Any) -> SharedModel:
        """A copy of a model (this kind's) with its roles."""
        return with_roles(self.new() if model is None else model, fresh, self.family, **settings)


WORDS = ("text", "text_mask", "pooled", "glyphs", "glyphs_mask")  # the fields that a prompt encoder makes


def with_roles(pristine: nn.Module, fresh: bool = False, family: str = "wan", **settings: Any) -> SharedModel:
    """A copy of the model with its roles; the adapters do something already unless `fresh`."""
    chosen = {"critic_rank": 4, "student_rank": 4} | settings
    model = SharedModel(backbone(family), copy.deepcopy(pristine), **chosen)
    rng = torch.Generator().manual_seed(1)
    for name, parameter in model.base.named_parameters():
        if ".lora_" in name and not fresh:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)
    return model


def program_of(recipe: Recipe, pristine: nn.Module, data: LatentSet, source: Any = None, **settings: Any) -> Program:
    """The program of a recipe on a copy of the model, as `assembly` makes it."""
    matches = recipe.method == "distribution_matching" and recipe.matching.weight > 0
    of_recipe = {
        "family": recipe.model.family,
        "critic_rank": recipe.critic.rank if matches and recipe.critic.kind == "lora" else 0,
        "critic_copy": matches and recipe.critic.kind == "full",
        "student_rank": recipe.student.rank if recipe.student.kind == "lora" else 0,
        "alpha_weak": recipe.matching.alpha_weak,
        "alpha_strong": recipe.matching.alpha_strong,
        "checkpointing": recipe.model.gradient_checkpointing,
        "embedded": embedded_guidance(recipe.embedded),
    }
    model = with_roles(pristine, **{"fresh": True, **of_recipe, **settings})
    return job_of(recipe, model, cast(Any, source), data).program
