"""AVDM2's second part (arXiv 2412.05899): the student's single frames are matched to a pretrained image model's.

K frames of the student's clean sample are noised and scored by a frozen image model and by an adapter on it that
learns what the student's frames look like; the gradient is fake minus real, as for whole clips. The image model can be
any that shares the latent space, a stylised one as well. Its first part, the discriminator, is `adversarial.py`.

Where a causal VAE makes the latents, a latent frame stands for several frames, and only the first one is a picture. Two
ways are offered there, both ours: that first one alone, or frames decoded and encoded again, each by itself.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from ..sections import Optimizer, setting
from ..terms import Term
from .distribution_matching import matching_gradient, matching_loss, watch
from .flow_matching import denoising_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from ..condition import Condition
    from ..data.codec import Codec
    from ..roles import SharedModel
    from ..rollout import Rollout
    from ..settings import Model, Recipe
    from ..terms import Stage, StudentStep

ADAPTER = "frames"  # the critic's name in a base that holds others
SECTION = "frame_matching"  # of the recipe
TEACHER = "teacher"  # what `model` may say besides a place


class Settings(Optimizer):
    """AVDM2 (arXiv 2412.05899): an image model judges the student's single frames."""

    weight: float = setting(0.0, "weight of the gradient of single frames (0 = off)", ge=0, le=100)
    model: str = setting(
        TEACHER,
        "the image model: teacher = the video teacher on clips of one latent frame; else a model folder or file, or "
        "hub:owner/name to download",
    )
    family: str = setting("image_unet", "family of the image model, by its name in the backbones registry")
    way: Literal["latent", "decoded"] = setting(
        "latent",
        "latent = frames are taken from the latents (of a causal VAE the first alone); decoded = from the clip, "
        "decoded and encoded again by themselves",
    )
    frames: int = setting(4, "frames of each sample that are judged", unit="frames", ge=1, le=4096)
    guidance_scale: float = setting(1.0, "guidance of the image model's score, u + g(c - u); 1 = none", ge=0, le=100)
    alpha_weak: float = setting(0.0, "share of the frames' critic in the image model's real score", ge=0, le=1)
    rank: int = setting(64, "rank of the frames' critic", ge=1, le=1024)
    updates: int = setting(2, "updates of that critic for each generator update", unit="updates", ge=1, le=100)
    score_law: Literal["uniform", "shift"] = setting("uniform", "how the noise levels of the scores are drawn")
    score_shift: float = setting(5.0, "sigma shift of the score levels (only for score_law shift)", ge=0.01, le=100)
    score_min: float = setting(0.02, "lowest noise level of a score", unit="sigma", ge=0, le=1)
    score_max: float = setting(0.98, "highest noise level of a score", unit="sigma", ge=0, le=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if not self.model:
            raise ValueError("frame_matching.model is empty; name an image model, or teacher")
        if self.score_min >= self.score_max:
            raise ValueError(
                f"frame_matching.score_min {self.score_min:g} must be below frame_matching.score_max "
                f"{self.score_max:g}; lower the one or raise the other"
            )
        if self.weight and self.alpha_weak == 1 and self.guidance_scale == 1:
            raise ValueError(
                "frame_matching.alpha_weak 1 makes real and fake score the same, and the student learns nothing; "
                "lower it"
            )
        return self


def draw_positions(rows: int, frames: int, count: int, generator: torch.Generator) -> Tensor:
    """Which frames are judged, (rows, count): different ones of each row, all alike likely; all if fewer."""
    import torch

    return torch.rand(rows, frames, generator=generator).argsort(1)[:, : min(count, frames)]


def picked(clips: Tensor, positions: Tensor) -> Tensor:
    """Single frames `(b k) c 1 h w`, row by row, of clips `b c f h w` at positions (b, k)."""
    import torch

    rows = torch.arange(len(clips), device=clips.device)[:, None]
    return clips.transpose(1, 2)[rows, positions.to(clips.device)].flatten(0, 1).unsqueeze(2)


class Added(Term):
    """The image model in two roles, and what its two scores say of the student's frames."""

    settings: Settings

    def __init__(self, settings: Settings, stage: Stage) -> None:
        super().__init__(settings, stage)
        r, video = stage.recipe, stage.model
        self.causal = video.backbone.latents(video.base).time > 1
        _, condition = stage.data.batch(stage.data.rows(0, 1, r.seed), video.device)
        self._check(condition)
        with named_as_the_image_models():
            self.codecs = codecs_of(settings, stage) if settings.way == "decoded" else None
            self.image = image_model(settings, stage, self.codecs and self.codecs[1])
        self.fields = self.image.backbone.facts(self.image.base).takes
        self.image.backbone.check_condition(self.image.base, self._shared(condition))
        rounds = r.critic.warmup + r.train.steps
        weights = self.image.parameters("fake")
        self.learners = {
            "critic": stage.new_learner("frame_matching", weights, settings, rounds * settings.updates),
        }

    @classmethod
    def is_on(cls, settings: Settings) -> bool:
        return settings.weight > 0

    @classmethod
    def misfit(cls, settings: Settings, recipe: Recipe) -> str:
        if settings.lr or settings.guidance_scale != 1 or recipe.start:
            return ""
        return (
            "frame_matching.lr 0 leaves its critic as the image model that it begins as, so that the two scores never "
            "differ; raise it, or set frame_matching.weight to 0"
        )

    def models(self) -> Mapping[str, Tensor]:
        return {} if self.image.base is self.stage.model.base else self.image.base_state()

    def remarks(self) -> list[str]:
        found = []
        if self._first_alone:
            found.append(
                "frame_matching.way latent judges the first latent frame alone, since the VAE packs several frames "
                "into each of the others; use decoded for all of them"
            )
        if self.stage.recipe.rollout.grad_steps != "last":
            found.append(
                "frame_matching is meant for the final sample of a path; rollout.grad_steps last supervises that alone"
            )
        return found

    def loss(self, step: StudentStep) -> Tensor | None:
        """Its gradient in the frames is fixed, and goes on through the codec, if there is one, to the student alone."""
        place = (step.index, "frames", step.rollout.step)
        frames, condition = self._frames(step.x0, step.rollout.condition, *place)
        fake, real = self._scores(frames.detach(), condition, *place)
        gradient = matching_gradient(frames, fake, real, self.stage.recipe.matching.normaliser_floor)
        gap = watch(frames, fake, real)
        step.logs.update({"frame_matching/cosine": gap.cosine, "frame_matching/gap": gap.relative})
        return self.settings.weight * matching_loss(frames, gradient)

    def learn(self, index: int, x0: Tensor, rollout: Rollout) -> dict[str, float]:
        logs: dict[str, float] = {}
        for k in range(self.settings.updates):
            logs |= self._update(x0.detach(), rollout.condition, index, "frames critic", k)
        return logs

    def _update(self, x0: Tensor, condition: Condition, *place: Any) -> dict[str, float]:
        """One update of the critic on frames of the student's samples."""
        import torch

        with torch.no_grad():
            frames, condition = self._frames(x0, condition, *place)
        process = self.image.backbone.process
        sigma, eps = self._noise_level(len(frames), *place), self.stage.noise(frames.shape, *place, "noise")
        output = self.image.predict("fake", process.noise(frames, eps, sigma), sigma, condition)
        return self.learners["critic"].update(denoising_loss(process, output, frames, eps, sigma))

    def _frames(self, x0: Tensor, condition: Condition, *place: Any) -> tuple[Tensor, Condition]:
        """K frames of each sample as the image model has them, `(b k) c 1 h w`, and their conditions."""
        clips = x0[:, :, :1] if self._first_alone else x0
        if self.codecs is not None:
            clips = self.codecs[0].decode(clips)
        positions = draw_positions(
            len(clips), clips.shape[2], self.settings.frames, self.stage.rng(*place, "positions")
        )
        frames = picked(clips, positions)
        if self.codecs is not None:
            frames = self.codecs[1].encode(frames)
        return frames, self._shared(condition)[[row for row in range(len(x0)) for _ in range(positions.shape[1])]]

    def _scores(self, frames: Tensor, condition: Condition, *place: Any) -> tuple[Tensor, Tensor]:
        """x0 of the fake and of the guided real score of noised frames."""
        from ..scores import ask_scores

        sigma, eps = self._noise_level(len(frames), *place), self.stage.noise(frames.shape, *place, "noise")
        x_t = self.image.backbone.process.noise(frames, eps, sigma)
        s, null = self.settings, self._shared(self.stage.data.null.to(x_t.device))
        batched = self.stage.recipe.matching.batched_scores
        return ask_scores(
            self.image, (x_t, x_t), sigma, condition, null, guidance_scale=s.guidance_scale, batched=batched
        )

    def _noise_level(self, count: int, *place: Any) -> Tensor:
        from ..flow import score_times

        s = self.settings
        times = score_times(
            count, law=s.score_law, shift=s.score_shift, lowest=s.score_min, highest=s.score_max,
            generator=self.stage.rng(*place, "level"),
        )  # fmt: skip
        return times.to(self.image.device)

    @property
    def _first_alone(self) -> bool:
        return self.causal and self.settings.way == "latent"

    def _shared(self, condition: Condition) -> Condition:
        """What the image model takes of a clip's condition."""
        from ..condition import Condition

        return Condition({name: value for name, value in condition.fields.items() if name in self.fields})

    def _check(self, condition: Condition) -> None:
        from ..condition import FRAME_FIELDS
        from ..errors import UserError

        if not any(name in condition.fields for name in FRAME_FIELDS):
            return
        if self.settings.model == TEACHER:
            raise UserError(
                "frame_matching.model teacher makes clips from a given first frame and so can't judge single frames; "
                "name an image model"
            )
        if self._first_alone:
            raise UserError(
                "frame_matching.way latent judges the first latent frame alone, and this model is given it; use decoded"
            )


@contextlib.contextmanager
def named_as_the_image_models() -> Iterator[None]:
    """Errors of loading a model name `model.path` and `model.family`; the image model's have names of their own."""
    from ..backbones.fits import OTHER_MODEL
    from ..errors import UserError

    try:
        yield
    except UserError as error:
        text = str(error).replace(OTHER_MODEL, f"name another one in {SECTION}.model")
        ours = {"model.path": f"{SECTION}.model", "model.family": f"{SECTION}.family"}
        raise UserError(re.sub(r"(?<![\w.])model\.(path|family)\b", lambda found: ours[found[0]], text)) from error


def image_model(settings: Settings, stage: Stage, codec: Codec | None) -> SharedModel:
    """The image model with its critic: the video teacher itself, or one from disk.

    Args:
        codec: makes its latents; None where they are the student's own.

    Raises:
        UserError: it is not there, broken, or takes other latents or prompts than the student's.
    """
    from ..assembly import embedded_guidance, load_model
    from ..roles import SharedModel

    recipe, source = stage.recipe, stage.source
    if settings.model == TEACHER:
        return stage.model.with_own_critic(ADAPTER, settings.rank, settings.alpha_weak, recipe.seed)
    section = own_section(settings, stage)
    family, base = load_model(section, source.geometry if codec is None else codec.geometry, source.width)
    return SharedModel(
        family,
        base.to(stage.model.device),
        critic_rank=settings.rank,
        student_rank=None,
        alpha_weak=settings.alpha_weak,
        checkpointing=recipe.model.gradient_checkpointing,
        seed=recipe.seed,
        embedded=embedded_guidance(recipe.embedded),
    )


def own_section(settings: Settings, stage: Stage) -> Model:
    """The recipe's `model` section as it would name the image model."""
    own = {"path": settings.model, "family": settings.family, "loras": (), "init": "load", "vae": ""}
    return stage.recipe.model.model_copy(update=own)


def codecs_of(settings: Settings, stage: Stage) -> tuple[Codec, Codec]:
    """What decodes a clip, and what encodes a single frame for the image model; gradients go through both.

    The video teacher and models of the portraits encode a frame as a clip of its own; others have their own VAE.
    """
    from ..assembly import located
    from ..backbones import backbone

    video = _there(stage.source.load_codec(), stage.model.device)
    if settings.model == TEACHER or stage.recipe.model.encoders == "bundled":
        return video, video
    section = located(own_section(settings, stage))
    own = backbone(settings.family).encoder_source(section, stage.model.device).load_codec()
    return video, _there(own, stage.model.device)


def _there(codec: Codec, device: torch.device) -> Codec:
    """A codec on the device; a small one as a copy, since others use it where it is."""
    import copy

    from torch import nn

    return copy.deepcopy(codec).to(device) if isinstance(codec, nn.Module) else codec
