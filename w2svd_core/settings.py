"""Every setting of a recipe, defined once: type, default, range, unit and meaning.

The YAML check (`config.py`), the command line and `--help` (`options.py`) and the node widgets are all made
from these models; a paper's own settings stand in its file in `objectives/` and join them here. Nothing here knows
torch or a model family.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, Self

from pydantic import create_model, field_validator, model_validator

from .guard_settings import Guard
from .objectives import check_terms, sections
from .recipe_checks import check_distillation, check_named, check_prompts, check_student, check_teacher
from .sections import MAX_COUNT, MAX_SEED, Optimizer, Section, setting
from .sigmas import check_sigmas

PURE_NOISE = 0.99  # the timesteps of Stable Diffusion end a little below 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Model(Section):
    """The frozen base model, or a new one for pre-training."""

    family: str = setting("wan", "model family, by its name in the backbones registry")
    path: str = setting(
        "bundled",
        "bundled = the portrait teacher of this repo; else a model folder or file, or hub:owner/name (or "
        "hub:owner/name@branch) to download",
    )
    loras: tuple[str, ...] = setting(
        (),
        "LoRA files that the teacher is distilled with, each path or path@strength (a fine-tune of the user's)",
        rule="a list of files, such as portrait.safetensors@0.8",
    )
    encoders: Literal["bundled", "own"] = setting(
        "bundled", "bundled = the portraits' codec and prompt words; own = the model's VAE, text and image encoder"
    )
    vae: str = setting("", "folder or native file of the VAE; empty = the one beside the model in model.path")
    text_encoder: str = setting("", "folder or native file of the text encoder; empty = the one in model.path")
    text_precision: Literal["fp32", "bf16"] = setting("bf16", "number format of the model's own text encoder")
    tokenizer: str = setting("", "folder of the tokenizer; empty = the one in model.path")
    text_encoder_2: str = setting(
        "", "folder or native file of the second text encoder, where there is one; empty = the one in model.path"
    )
    tokenizer_2: str = setting("", "folder of the second tokenizer; empty = the one in model.path")
    image_encoder: str = setting("", "folder or native file of the image encoder; empty = the one in model.path")
    precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", "number format of the base's weights and maths")
    gradient_checkpointing: bool = setting(False, "recompute activations: less memory, about a third more time")
    compile: bool = setting(
        False, "compile the blocks: faster, needs a C++ compiler (only for flow_matching with student.kind full)"
    )
    first_frame: bool = setting(
        False,
        "clips start from a given first frame (only for init random, and for a model that starts from text or from an "
        "image alike)",
    )
    init: Literal["load", "random", "first_frame"] = setting(
        "load",
        "load = weights of model.path; random = train from scratch; first_frame = weights of "
        "model.path, widened to be taught to start from a first frame",
    )
    heads: int = setting(2, "attention heads (only for init random)", ge=1, le=128)
    head_dim: int = setting(128, "width of one head (only for init random)", unit="channels", ge=8, le=512)
    ffn_dim: int = setting(
        512, "width of the feed-forward layers (only for init random)", unit="channels", ge=8, le=65536
    )
    layers: int = setting(3, "transformer blocks (only for init random)", ge=1, le=128)


class Student(Optimizer):
    """The few-step student (for flow_matching: the model in training)."""

    kind: Literal["lora", "full"] = setting("lora", "lora = an adapter on the frozen base; full = a trainable copy")
    rank: int = setting(64, "rank of the student's adapter (only for kind lora)", ge=1, le=1024)
    init: str = setting("", "few-step LoRA file of any rank that the student (alone) starts from; empty = none")
    save_precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", "number format of a saved full copy")
    ema: float = setting(
        0.0, "decay of the student's moving average, which is what is saved (0 = off)", ge=0, le=0.9999
    )
    sampler: Literal["renoise", "euler"] = setting("renoise", "how the student steps from sigma to sigma")
    sigmas: tuple[float, ...] = setting(
        (1.0, 0.9375, 0.8333333, 0.625, 0.0),
        "noise levels of the student's steps; one more than it has steps",
        rule="a descending list of 2 to 1001 sigmas from 1 (at least 0.99) down to 0, such as 1,0.75,0",
    )

    @field_validator("sigmas")
    @classmethod
    def _descending(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        check_sigmas(sigmas)
        if sigmas[0] < PURE_NOISE:
            raise ValueError(f"sigmas {list(sigmas)} must begin at 1, the pure noise that a student starts from")
        if len(sigmas) > 1001:
            raise ValueError("sigmas are more than 1000 steps")
        return sigmas


class Critic(Optimizer):
    """The critic: the adapter that follows the student's own distribution."""

    kind: Literal["lora", "full"] = setting(
        "lora", "lora = an adapter on the frozen base; full = a trainable copy, as in DMD2 (only with alpha_weak 0)"
    )
    rank: int = setting(64, "rank of the critic's adapter; not below the student's", ge=1, le=1024)
    updates: int = setting(5, "critic updates for each generator update", unit="updates", ge=1, le=100)
    warmup: int = setting(
        10,
        "rounds of critic updates alone, before the first generator update",
        unit="rounds",
        ge=0,
        le=MAX_COUNT,
    )


class Matching(Section):
    """Distribution matching with a weak-to-strong shift of the real score."""

    alpha_weak: float = setting(0.25, "share of the critic's adapter in the real score (0 is DMD2)", ge=0, le=1)
    alpha_strong: float = setting(1.0, "share of the critic's adapter in the fake score", ge=0, le=2)
    guidance_scale: float = setting(1.0, "guidance of the real score, u + g(c - u); 1 = none", ge=0, le=100)
    score_law: Literal["uniform", "shift"] = setting("uniform", "how the noise levels of the scores are drawn")
    score_shift: float = setting(5.0, "sigma shift of the score levels (only for score_law shift)", ge=0.01, le=100)
    score_min: float = setting(0.02, "lowest noise level of a score", unit="sigma", ge=0, le=1)
    score_max: float = setting(0.98, "highest noise level of a score", unit="sigma", ge=0, le=1)
    normaliser_floor: float = setting(0.05, "floor under the normaliser of each sample's gradient", ge=1e-8, le=10)
    weight: float = setting(1.0, "weight of the matching gradient (0 = none, and no critic)", ge=0, le=100)
    batched_scores: bool = setting(True, "make the scores of a step in one batch; false takes less memory")
    ground_truth_weight: float = setting(0.0, "weight of the ground-truth term beside it (0 = off)", ge=0, le=100)

    @model_validator(mode="after")
    def _range_of_levels(self) -> Self:
        if self.score_min >= self.score_max:
            raise ValueError(
                f"matching.score_min {self.score_min:g} must be below matching.score_max {self.score_max:g}; "
                "lower the one or raise the other"
            )
        return self


class Embedded(Section):
    """Guidance that a model takes as a number beside the noise level (HunyuanVideo), for each of its roles.

    A model that takes none is told none. That each role has its own is ours; no paper states them.
    """

    teacher: float = setting(6.0, "embedded guidance of the teacher (only for models that take one)", ge=0, le=100)
    real: float = setting(6.0, "embedded guidance of the real score (only for models that take one)", ge=0, le=100)
    fake: float = setting(6.0, "embedded guidance of the fake score (only for models that take one)", ge=0, le=100)
    student: float = setting(
        6.0, "embedded guidance of the student, trained and sampled (only for models that take one)", ge=0, le=100
    )
    clips: float = setting(
        1.0, "embedded guidance of a model while it learns from clips (only for flow_matching)", ge=0, le=100
    )


class Rollout(Section):
    """Where the student's samples come from."""

    source: Literal["backward_simulation", "noised_data"] = setting(
        "backward_simulation", "the student's own path from noise, or noised clips"
    )
    grad_steps: Literal["random", "last", "all"] = setting(
        "random", "which steps of the student's path an update supervises: one at random, the last, or each of them"
    )
    reuse: Literal["visited", "exit", "fresh"] = setting(
        "visited",
        "what the critic learns from: all steps of one rollout, its last step, or fresh rollouts",
    )
    pool: int = setting(32, "samples kept of each step for the critic to draw from", unit="rows", ge=1, le=65536)


class Data(Section):
    """The clips."""

    folder: str = setting(
        "portraits", "portraits = drawn by this project on first use; else a folder of videos and captions"
    )
    clips: int = setting(
        512, "how many portraits are drawn (only for folder portraits)", unit="clips", ge=1, le=999_999
    )
    prompts: str = setting("", "file of prompts, one in each line, to train on without clips; empty = the clips")
    frames: int = setting(17, "length of a clip", unit="frames", ge=1, le=4096)
    min_frames: int = setting(
        0, "a shorter clip is used down to this length (0 = data.frames)", unit="frames", ge=0, le=4096
    )
    buckets: int = setting(
        1,
        "shapes of about height x width pixels that clips are sorted into by their aspect",
        unit="shapes",
        ge=1,
        le=64,
    )
    workers: int = setting(2, "threads that decode clips", unit="threads", ge=1, le=256)
    height: int = setting(32, "height of a clip", unit="px", ge=8, le=8192)
    width: int = setting(32, "width of a clip", unit="px", ge=8, le=8192)
    fps: float = setting(8.0, "frame rate of a clip", unit="frames/s", ge=0.1, le=240)
    cache: str = setting("", "folder for drawn clips and latents; empty = the user's cache folder")


class Train(Section):
    """The loop."""

    steps: int = setting(60, "generator updates (for flow_matching: updates)", unit="updates", ge=1, le=MAX_COUNT)
    batch: int = setting(32, "clips in one update", unit="clips", ge=1, le=65536)
    clip_norm: float = setting(10.0, "gradients are scaled down to this norm (0 = off)", ge=0, le=1e6)
    checkpoint_every: int = setting(
        50, "updates between checkpoints (0 = only at the end)", unit="updates", ge=0, le=MAX_COUNT
    )
    log_every: int = setting(1, "updates between rows of metrics.jsonl", unit="updates", ge=1, le=MAX_COUNT)
    sample_every: int = setting(
        0, "updates between sample clips (0 = only at the end)", unit="updates", ge=0, le=MAX_COUNT
    )
    max_nonfinite: int = setting(
        5, "the run stops after so many non-finite updates in a row", unit="updates", ge=1, le=10_000
    )
    lr_decay: Literal["constant", "cosine"] = setting("constant", "course of the learning rates; cosine ends at 0")
    lr_warmup: int = setting(0, "updates in which the learning rates rise from 0", unit="updates", ge=0, le=MAX_COUNT)
    condition_dropout: float = setting(0.1, "share of captions left out (only for flow_matching)", ge=0, le=1)
    time_law: Literal["uniform", "shift"] = setting("uniform", "how noise levels are drawn (only for flow_matching)")
    time_shift: float = setting(3.0, "sigma shift of the noise levels (only for time_law shift)", ge=0.01, le=100)
    tracker: Literal["tensorboard", "wandb", "none"] = setting("tensorboard", "where metrics go beside metrics.jsonl")


class Teacher(Section):
    """The teacher's reference sampler (Euler)."""

    steps: int = setting(28, "steps of a reference sample", unit="steps", ge=1, le=1000)
    shift: float = setting(5.0, "sigma shift of the reference sampler", ge=0.01, le=100)
    guidance_scale: float = setting(1.0, "guidance of the reference sampler, u + g(c - u); 1 = none", ge=0, le=100)


class Evaluate(Section):
    """The evaluation at the end of a run."""

    clips: int = setting(128, "clips for each row of the table (0 = no evaluation)", unit="clips", ge=0, le=1_000_000)
    seed: int = setting(
        1_000_000, "seed of the first held-out portrait (not below data.clips) and of the noise", ge=0, le=MAX_SEED
    )
    batch: int = setting(64, "clips sampled at a time", unit="clips", ge=1, le=65536)
    few_step_shift: float = setting(5.0, "sigma shift of the teacher's few-step Euler row", ge=0.01, le=100)
    few_step_guidance: float = setting(1.0, "guidance of the teacher's few-step Euler row; 1 = none", ge=0, le=100)
    fid_network: str = setting("", "InceptionV3 weights for a real FID column; empty = none")
    fvd_network: str = setting("", "I3D TorchScript file for a real FVD column; empty = none")
    clip_model: str = setting("", "folder of a CLIP model for a text column; empty = none")


class _Recipe(Section):
    """The whole run."""

    method: Literal["distribution_matching", "consistency", "flow_matching"] = setting(
        "distribution_matching",
        "distil a teacher into few steps by matching distributions (W2SVD, DMD2 and what is mixed with them) or by "
        "consistency (LCM), or train a model on clips",
    )
    name: str = setting(
        "portraits",
        "name of the recipe and of its runs",
        rule="letters, digits, '.', '_' and '-', a letter or digit first",
    )
    first: str = setting(
        "",
        "recipe of a fine-tune that is run first, on this recipe's model and clips; what it makes is the teacher",
    )
    start: str = setting(
        "", "finished run whose student, critic and like terms this one starts from, also as --from; empty = none"
    )
    seed: int = setting(0, "seed of everything random in the training", ge=0, le=MAX_SEED)
    model: Model = Model()
    student: Student = Student()
    critic: Critic = Critic()
    matching: Matching = Matching()
    embedded: Embedded = Embedded()
    rollout: Rollout = Rollout()
    data: Data = Data()
    train: Train = Train()
    teacher: Teacher = Teacher()
    evaluate: Evaluate = Evaluate()
    guard: Guard = Guard()

    @property
    def distils(self) -> bool:
        """Whether a teacher is made into a few-step student, which is what is saved and measured."""
        return self.method != "flow_matching"

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if NAME.fullmatch(name) is None:
            raise ValueError("not a plain name")
        return name

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        clips = self.evaluate.clips
        if clips and (clips < 50 or clips % 2):
            raise ValueError(f"evaluate.clips {clips} is neither 0 nor an even number from 50 up, as a table needs")
        if clips and self.data.frames < 5:
            raise ValueError(
                f"data.frames {self.data.frames} is too short to measure motion; use 5, or evaluate.clips 0"
            )
        if clips and self.data.folder == "portraits" and self.evaluate.seed < self.data.clips:  # seeds from 0 train
            raise ValueError(
                f"evaluate.seed {self.evaluate.seed} would measure portraits that data.clips {self.data.clips} trains "
                f"on; set evaluate.seed to at least {self.data.clips}"
            )
        check_named(self)
        check_student(self)
        self.guard.check(self)
        check_terms(self)
        if self.data.prompts:
            check_prompts(self)
        if self.matching.ground_truth_weight and self.method != "distribution_matching":
            raise ValueError(f"matching.ground_truth_weight would do nothing in method {self.method}; set it to 0")
        new = self.model.init
        if self.model.encoders == "own" and new != "load":
            raise ValueError(f"model.init {new} learns from the bundled encoders; set model.encoders to bundled")
        if "full" in (self.student.kind, self.critic.kind) and self.model.precision != "fp32":
            raise ValueError(
                f"a full copy (student.kind, critic.kind) with model.precision {self.model.precision} would lose small "
                "steps to rounding; use fp32, or kind lora"
            )
        if self.student.init and (self.student.kind == "full" or self.method == "flow_matching"):
            raise ValueError(
                "student.init is for the adapter of a student in distillation; clear it, or merge the LoRA into the "
                "model by model.loras"
            )
        if self.start and (self.method != "distribution_matching" or self.student.init):
            raise ValueError(
                "start takes student and critic of a run of method distribution_matching, and nothing beside it; clear "
                "start, or student.init"
            )
        if self.model.compile and (self.method != "flow_matching" or self.student.kind != "full"):
            raise ValueError(
                "model.compile is only for method flow_matching with student.kind full, because adapters are put in "
                "and taken out around each call; set model.compile to false"
            )
        if self.method == "distribution_matching":
            check_distillation(self)
        elif self.method == "consistency":
            check_teacher(self)
        elif new != "load" and self.student.kind == "lora":
            raise ValueError(
                f"student.kind lora cannot train model.init {new}, because an adapter leaves its "
                "base as it is; set student.kind to full"
            )
        return self


if TYPE_CHECKING:
    Recipe = _Recipe
else:
    Recipe = create_model(
        "Recipe",
        __base__=_Recipe,
        __doc__=_Recipe.__doc__,
        **{name: (kind, kind()) for name, kind in sections().items()},
    )
"""With a section for each file in `objectives/` that has settings, under the file's name."""
