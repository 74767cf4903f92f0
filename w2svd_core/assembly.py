"""From a recipe to the parts of a run: model with roles, data, learners, program. Here everybody meets, once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .backbones import TEACHERS, USUAL, backbone
from .backbones.base import Architecture, Backbone
from .consistency_training import Consistency
from .data.codec import FrameByFrame, load_portrait_codec
from .data.encoder_source import EncoderSource, LoadedEncoders
from .data.latents import Progress, load_latents
from .data.prepare import prepare
from .data.prompts import HashedWords
from .data.training_set import TrainingSet
from .data.wanted import prepared_set
from .distillation import Distillation
from .errors import UserError
from .files import dtype_named
from .geometry import LatentGeometry
from .hub import fetched
from .learner import Learner, lr_schedule
from .lora_algebra import merge_files, read_at_rank
from .lora_files import load_into_peft, read_changes
from .pretraining import FlowMatching
from .roles import FAKE, GENERATOR, Role, SharedModel
from .sections import Optimizer
from .settings import Embedded, Model, Recipe
from .trainer import Program

ASSETS = Path(__file__).parent / "assets"
BUNDLED_TEACHER = ASSETS / TEACHERS[USUAL]
BUNDLED_CODEC = ASSETS / "portrait_codec.safetensors"


@dataclass(frozen=True)
class Job:
    """A run, ready to be driven."""

    model: SharedModel
    source: EncoderSource
    data: TrainingSet
    program: Program
    student: Learner


def bundled_encoders() -> LoadedEncoders:
    """The portrait codec and the hashed words."""
    return LoadedEncoders(load_portrait_codec(BUNDLED_CODEC), HashedWords())


def located(settings: Model) -> Model:
    """The same model with every part on this machine: the bundled one by its path, hub repositories fetched.

    Raises:
        UserError: there is no such family, or no bundled model of it; or as `fetched`.
    """
    name, path = backbone(settings.family).name, settings.path
    if path == "bundled" and settings.init != "random":  # a new one comes from nowhere
        if name not in TEACHERS:
            raise UserError(f"there is no bundled model of the family {name}; name one in model.path")
        path = str(ASSETS / TEACHERS[name])
    return fetched(settings.model_copy(update={"path": path}))


def encoder_source(settings: Model, device: torch.device) -> EncoderSource:
    """What turns pixels and words into what the model takes: the bundled encoders, or the model's own, to be loaded.

    Raises:
        UserError: the model is not there, or of a kind that is not supported.
    """
    settings, family = located(settings), backbone(settings.family)
    if settings.encoders == "own":
        source = family.encoder_source(settings, device)
        if settings.first_frame and not source.starts:
            raise UserError(
                f"model.first_frame is true, but {settings.path} makes clips from text alone; set it to false, or name "
                "an image-to-video model"
            )
        return source
    bundled = bundled_encoders()
    if family.frame_by_frame:
        return LoadedEncoders(FrameByFrame(load_portrait_codec(BUNDLED_CODEC)), bundled.prompts)
    return replace(bundled, start=family.start_encoder(settings, bundled.codec))


def training_set(recipe: Recipe, source: EncoderSource, progress: Progress) -> TrainingSet:
    """The recipe's clips or prompts as the model takes them.

    What the bundled encoders make is made here; what a model's own make must have been prepared.

    Raises:
        UserError: the clips do not serve, or are not prepared for this recipe.
    """
    d = recipe.data
    if isinstance(source, LoadedEncoders):
        if not d.prompts and d.buckets == 1 and not d.min_frames:
            return load_latents(d, source, progress)
        prepare(d, source, progress)
    return prepared_set(d, source, source.geometry, progress)


def load_base(settings: Model, source: EncoderSource, seed: int) -> tuple[Backbone, torch.nn.Module]:
    """The family and its model: from `model.path` with `model.loras` merged into it, as `model.init` says, or random.

    Raises:
        UserError: the model is not there, broken, or takes other latents or prompts than the encoders make.
    """
    family = backbone(settings.family)
    if settings.init == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            s = settings
            sizes = Architecture(s.heads, s.head_dim, s.ffn_dim, s.layers, source.width, s.first_frame)
            return family, family.build(sizes)
    family, model = load_model(settings, source.geometry, source.width)
    if settings.init == "first_frame":
        model = family.with_first_frame(model).eval()
    return family, model


def load_model(settings: Model, latents: LatentGeometry, width: int) -> tuple[Backbone, torch.nn.Module]:
    """The family and its model from `model.path`, with `model.loras` merged into it.

    Args:
        latents: that it must take.
        width: of the prompts' tokens that it must take.

    Raises:
        UserError: as `load_base`.
    """
    family = backbone(settings.family)
    model = family.load(Path(located(settings).path), dtype_named(settings.precision)).eval()
    family.check_fit(model, latents, width)
    merge_files(model, settings.loras, family.keys)
    return family, model


def shared_model(recipe: Recipe, source: EncoderSource, device: torch.device) -> SharedModel:
    """The base with the adapters that the recipe asks for.

    Raises:
        UserError: as `load_base`; or the LoRA in `student.init` is none for this model.
    """
    family, base = load_base(recipe.model, source, recipe.seed)
    return roles_of(recipe, family, base.to(device))


def roles_of(recipe: Recipe, family: Backbone, base: torch.nn.Module) -> SharedModel:
    """A base, on its device, with the adapters that the recipe asks for.

    Raises:
        UserError: the LoRA in `student.init` is none for this model.
    """
    matches = recipe.method == "distribution_matching" and recipe.matching.weight > 0
    model = SharedModel(
        family,
        base,
        critic_rank=recipe.critic.rank if matches and recipe.critic.kind == "lora" else 0,
        critic_copy=matches and recipe.critic.kind == "full",
        student_rank=recipe.student.rank if recipe.student.kind == "lora" else 0,
        alpha_weak=recipe.matching.alpha_weak,
        alpha_strong=recipe.matching.alpha_strong,
        checkpointing=recipe.model.gradient_checkpointing,
        seed=recipe.seed,
        embedded=embedded_guidance(recipe.embedded),
    )
    if recipe.student.init and model.copy is None:
        start_adapters(model, Path(recipe.student.init), recipe.student.rank)
    if recipe.model.compile and model.copy is not None:
        _compile(family.blocks(model.copy))
    return model


def embedded_guidance(settings: Embedded) -> dict[Role, float]:
    """What each role tells a model that takes its guidance as an input."""
    s = settings
    return {"teacher": s.teacher, "real": s.real, "fake": s.fake, "generator": s.student}


def start_adapters(model: SharedModel, path: Path, rank: int) -> None:
    """Let the student's adapter start from a few-step LoRA, brought to its rank.

    The critic starts from the base: its warm-up teaches it the student's samples, as DMD's does (arXiv 2311.18828).

    Raises:
        UserError: not a LoRA, or of another model.
    """
    if beside := read_changes(path, model.backbone.keys):
        print(
            f"warning: student.init {path} also changes {len(beside)} biases, norms or tables, which an adapter can't "
            "hold; the student starts without them (model.loras takes the file whole)",
            file=sys.stderr,
        )
    _, homeless = load_into_peft(model.base, GENERATOR, read_at_rank(path, model.backbone.keys, rank))
    if homeless:
        raise UserError(
            f"student.init {path} has {len(homeless)} layers that take no adapter here ({', '.join(homeless[:3])}); "
            f"adapters are trained of {', '.join(model.backbone.lora_targets)}"
        )


def _compile(blocks: Iterable[torch.nn.Module]) -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")):
        raise UserError("model.compile needs a C++ compiler, and none was found; install g++ or set it to false")
    for block in blocks:
        block.compile()


def assemble(recipe: Recipe, accelerator: Any, progress: Progress, device: torch.device | None = None) -> Job:
    """Load and build everything that the recipe names.

    Args:
        accelerator: accelerate's, for the processes.
        progress: told what is being prepared.
        device: to train on; accelerate's by default.
    """
    device = device or accelerator.device
    source = encoder_source(recipe.model, device)
    model = shared_model(recipe, source, device)  # what is wrong with it is said before clips are drawn
    data = training_set(recipe, source, progress)
    reduce = (lambda grad: accelerator.reduce(grad, "mean")) if accelerator.num_processes > 1 else None
    return job_of(recipe, model, source, data, reduce, accelerator.process_index)


def job_of(
    recipe: Recipe,
    model: SharedModel,
    source: EncoderSource,
    data: TrainingSet,
    reduce: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
) -> Job:
    """The parts of a run with their learners and the program.

    Args:
        reduce: the mean of a gradient over all processes.
        rank: of this process.

    Raises:
        UserError: the model can't be called with what the data hold.
    """
    _, condition = data.batch(data.rows(0, 1, recipe.seed), torch.device("cpu"))
    model.backbone.check_condition(model.base, condition)
    t = recipe.train

    def new_learner(
        name: str, parameters: Mapping[str, torch.nn.Parameter], optimizer: Optimizer, updates: int, ema: float = 0.0
    ) -> Learner:
        return Learner(
            name,
            parameters,
            optimizer,
            schedule=lr_schedule(t.lr_decay, t.lr_warmup, updates),
            clip_norm=t.clip_norm,
            max_nonfinite=t.max_nonfinite,
            ema=ema,
            reduce=reduce,
            scale_loss=recipe.model.precision == "fp16",
        )

    student = new_learner("student", model.parameters(GENERATOR), recipe.student, t.steps, recipe.student.ema)
    if recipe.method != "distribution_matching":
        method = Consistency if recipe.method == "consistency" else FlowMatching
        return Job(model, source, data, method(recipe, model, data, student, rank), student)
    updates = (recipe.critic.warmup + t.steps) * recipe.critic.updates
    critic = new_learner("critic", model.parameters(FAKE), recipe.critic, updates) if recipe.matching.weight else None
    program = Distillation(recipe, model, data, source, student, critic, new_learner, rank)
    return Job(model, source, data, program, student)
