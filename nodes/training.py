"""The training in the graph: a recipe out of sockets and widgets, a run folder, and what comes out of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import runs
from .compat import CATEGORY, field, io, schema, setting_values, told, widgets
from .places import run_folder
from .sockets import DATASET, MODEL, RECIPE, SHIFT, Dataset, Encoded, Shift, Values
from .work import BUNDLED, TOLD_ROLES, Work, work_of

if TYPE_CHECKING:
    from ..w2svd_core.settings import Recipe
    from ..w2svd_core.watch import Watch

HERE = f"{CATEGORY}/training"
SHIFTED = ("matching.alpha_weak", "matching.alpha_strong")
TOLD = tuple(f"embedded.{role}" for role in TOLD_ROLES)
SETTINGS = (
    *("train.steps", "train.batch", "student.rank", "student.lr", "student.ema", "student.sampler", "student.sigmas"),
    *("critic.rank", "critic.lr", "critic.updates", "critic.warmup", "matching.guidance_scale", "matching.score_law"),
    *("matching.score_shift", "rollout.source", "rollout.reuse", "train.lr_decay", "train.checkpoint_every"),
    *("train.sample_every", "seed"),
)
FOLDED = SETTINGS[9:-1]
SMALL, SEVERAL = 128 * 128, 4  # px of a frame; settings that are hardly alike by intent


class RealShift(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_RealShift",
            display_name="Weak-Weight Real-DiT Shift",
            category=HERE,
            description="How much of the critic's adapter is in the real score: 0.25 is W2SVD's, 0 is DMD2.",
            inputs=widgets(SHIFTED),
            outputs=[SHIFT.Output(display_name="shift", tooltip="The shift, for Train.")],
        )

    @classmethod
    @told
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(Shift(setting_values(given)))


class DistillSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..w2svd_core.config import load_recipe
        from ..w2svd_core.options import value_of

        portraits = load_recipe("portraits")
        return schema(
            node_id="W2SVD_DistillSettings",
            display_name="Distill Settings",
            category=HERE,
            description="How to train. The defaults are those of the portraits recipe.",
            inputs=widgets(SETTINGS, {key: value_of(portraits, key) for key in SETTINGS}, advanced=FOLDED),
            outputs=[RECIPE.Output(display_name="settings", tooltip="The settings, for Train.")],
        )

    @classmethod
    @told
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(Values(setting_values(given)))


class EmbeddedGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_EmbeddedGuidance",
            display_name="Embedded Guidance",
            category=HERE,
            description="The guidance that each role tells a model that takes it as an input (HunyuanVideo). Without "
            "this node every role of a MODEL tells what its CONDITIONING does (Flux Guidance).",
            inputs=[
                *widgets(TOLD),
                field(RECIPE, "settings", optional=True, tooltip="Distill Settings, which these are added to."),
            ],
            outputs=[RECIPE.Output(display_name="settings", tooltip="The settings, for Train.")],
        )

    @classmethod
    @told
    def execute(cls, settings: Values | None = None, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(Values({**(settings.settings if settings else {}), **setting_values(given)}))


class Train(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_Train",
            display_name="Distil (Train)",
            category=HERE,
            description="Distils the model into a few steps. Cancel saves, the same inputs go on, and a finished run "
            "is read from disk. The run folder in output/w2svd holds its recipe; with that of a model by name "
            "python -m w2svd_core.train goes on.",
            is_output_node=True,
            inputs=[
                field(
                    io.MultiType,
                    "model",
                    types=[io.Model, MODEL],
                    tooltip="The model to distil: any flow-matching MODEL, or one by name from Load Video Model.",
                ),
                field(
                    DATASET,
                    "dataset",
                    tooltip="Clips or prompts: encoded ones for a MODEL, ones from a folder for a model by name.",
                ),
                field(io.String, "name", default="portraits", tooltip="Name of the run folder in output/w2svd."),
                field(SHIFT, "shift", optional=True, tooltip="Weak-weight shift; without it 0.25."),
                field(RECIPE, "settings", optional=True, tooltip="Distill Settings; without them the recipe's own."),
                field(io.Vae, "vae", optional=True, tooltip="For a MODEL: its VAE, which shows samples."),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora", tooltip="The few-step student, for core's LoRA nodes and Save LoRA."
                ),
                io.Sigmas.Output(display_name="sigmas", tooltip="The noise levels that the student was trained for."),
                io.LossMap.Output(
                    display_name="losses",
                    tooltip="The student's loss of each step, and how its clips move, spread and differ.",
                ),
                io.Image.Output(display_name="samples", tooltip="The last sample clips, one after another."),
                io.String.Output(
                    display_name="run folder", tooltip="The folder of the run, with its recipe and report."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **_: Any) -> int:
        return runs.times_deleted(name) if name else 0

    @classmethod
    @told
    def execute(
        cls,
        model: Any,
        dataset: Dataset | Encoded,
        name: str,
        shift: Shift | None = None,
        settings: Values | None = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        import torch

        from .progress import NodeWatch

        folder = run_folder(name)
        work = work_of(model, dataset, vae)
        recipe = recipe_of(work, folder, shift, settings)
        if work.prompts:
            runs.write_prompts(folder, work.prompts)
        watch = NodeWatch(str(cls.hidden.unique_id), folder, recipe.data.fps)
        if settings and (unmeant := left_as_portraits(recipe, work.base)):
            watch.say(f"warning: {unmeant}")
        with torch.inference_mode(False), torch.enable_grad():
            train(recipe, folder, work, watch)
        runs.FINISHED.add(folder)
        return io.NodeOutput(*runs.made(folder), str(folder))


def recipe_of(work: Work, folder: Path, shift: Shift | None, settings: Values | None) -> Recipe:
    """The recipe that the node's inputs mean.

    Raises:
        UserError: they do not fit together.
    """
    from ..w2svd_core.config import load_recipe

    given = {**(settings.settings if settings else {}), **(shift.settings if shift else {})}
    values = {**work.settings(given), **given}
    if work.prompts:
        values["data.prompts"] = str(folder / runs.PROMPTS)
    fixed = {"name": "graph", "evaluate.clips": 0, "train.tracker": "none"}
    return load_recipe(work.base, {**values, **fixed}, "in the inputs of Train")


def left_as_portraits(recipe: Recipe, base: str) -> str:
    """What Distill Settings say of large clips by the portraits' defaults alone, in a sentence; "" = nothing."""
    from ..w2svd_core.config import load_recipe
    from ..w2svd_core.options import value_of

    if recipe.data.height * recipe.data.width <= SMALL:
        return ""
    small, own = load_recipe(BUNDLED), load_recipe(base)
    left = [key for key in SETTINGS if value_of(own, key) != value_of(recipe, key) == value_of(small, key)]
    if len(left) < SEVERAL:
        return ""
    return f"{', '.join(left)} are the portraits' in Distill Settings, not {base}'s; leave that node out, or copy those"


def train(recipe: Recipe, folder: Path, work: Work, watch: Watch) -> None:
    """Do the run of a recipe in a folder, or what is left of it; nothing for a finished one.

    Raises:
        UserError: the folder holds another run, or something does not serve.
        InterruptProcessingException: Cancel; the state is saved.
    """
    import comfy.model_management as management

    from ..w2svd_core.errors import UserError
    from ..w2svd_core.files import write_text
    from ..w2svd_core.job import carry_out
    from ..w2svd_core.memory import free_memory
    from ..w2svd_core.run import RunFolder

    files, same = folder / runs.FILES, True
    if RunFolder.is_one(folder):
        same = runs.is_of_recipe(RunFolder.open(folder), recipe)
        if files.is_file() and files.read_text(encoding="utf-8") != work.files():
            raise UserError(f"the run {folder.name} was made from other model files; {runs.OTHER_NAME}")
    with work.ready(recipe, watch) as make:
        if RunFolder.is_one(folder):
            runs.refuse_another_origin(RunFolder.open(folder), work.origin(recipe, make, watch))
            if not same:
                RunFolder.open(folder).refuse_fewer_steps(recipe)
                runs.write_recipe(folder, recipe)
        try:
            code = 0 if same and runs.is_finished(folder) else carry_out(recipe, folder, watch, make)
        finally:
            if RunFolder.is_one(folder):  # wrong inputs make none
                with contextlib.suppress(UserError):  # a full disk has been told already
                    write_text(files, work.files())
    del make  # with it goes the job, and the adapters on the GPU that the nodes behind this one need for themselves
    free_memory()
    if code:
        raise management.InterruptProcessingException


NODES: list[type[io.ComfyNode]] = [RealShift, DistillSettings, EmbeddedGuidance, Train]
