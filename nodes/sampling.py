"""Few-step sampling with core's own nodes: the noise levels, the sampler and the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..w2svd_core.errors import UserError
from .compat import CATEGORY, field, io, schema, told
from .places import NONE, lora_file, lora_names, lora_stamp
from .shown import shown

if TYPE_CHECKING:
    from torch import Tensor

    from ..w2svd_core.lora_metadata import LoraMetadata, Schedule

GROUP = f"{CATEGORY}/sampling"
USUAL_STEPS, USUAL_SHIFT = 4, 5.0  # what most few-step LoRAs of Wan were trained for
ETA = {"renoise": 1.0, "ode": 0.0, "euler": 0.0}
MAX_SEED = 2**32 - 1


# ---- noise levels


def chosen_schedule(about: LoraMetadata, steps: int) -> Schedule:
    """The schedule of a LoRA that has so many steps, else its first one with its levels spread over that many.

    Args:
        steps: 0 for the LoRA's first schedule.
    """
    from ..w2svd_core.flow import sigma_list

    own = next((one for one in about.schedules if one.steps == steps), about.default)
    if steps in (0, own.steps):
        return own
    shift = own.shift or USUAL_SHIFT
    return replace(own, sigmas=sigma_list(steps, shift), shift=shift, note="not trained with so many steps")


def usual_schedule(steps: int = 0, shift: float = USUAL_SHIFT) -> Schedule:
    """Evenly spread levels, shifted; re-noised."""
    from ..w2svd_core.flow import sigma_list
    from ..w2svd_core.lora_metadata import Schedule

    return Schedule(sigma_list(steps or USUAL_STEPS, shift), "renoise", shift)


def about_lora(name: str) -> LoraMetadata | None:
    """What a LoRA file says of itself; None for others' files.

    Raises:
        UserError: no file, or a broken one.
    """
    from ..w2svd_core.files import opened_safetensors
    from ..w2svd_core.lora_metadata import LoraMetadata

    path = lora_file(name)
    with opened_safetensors(path) as file:
        return LoraMetadata.from_strings(dict(file.metadata() or {}), name)


def schedule_of(source: str, lora: str, steps: int, shift: float, sigmas: str) -> Schedule:
    """What the widgets of Few-Step Sigmas ask for.

    Raises:
        UserError: no file, a file without a schedule, or a list that does not fall to 0.
    """
    from ..w2svd_core.lora_metadata import Schedule
    from ..w2svd_core.sigmas import parse_sigmas

    if source == "lora":
        about = about_lora(lora)
        if about is None:
            raise UserError(f"{lora} names no schedule; set source to steps or list, as the LoRA's page says")
        return chosen_schedule(about, steps)
    if source == "list":
        try:
            return Schedule(parse_sigmas(sigmas))
        except ValueError as error:
            raise UserError(f"Few-Step Sigmas: {error}") from error
    return usual_schedule(steps, shift)


def as_sigmas(levels: Sequence[float]) -> Tensor:
    """A SIGMAS value."""
    import torch

    return torch.tensor(levels, dtype=torch.float32)


def told_schedule(schedule: Schedule) -> str:
    """One line for the node."""
    levels = ", ".join(f"{level:.4g}" for level in schedule.sigmas)
    sampler = "ode (euler)" if schedule.sampler == "euler" else "renoise (lcm)"
    guidance = "" if schedule.guidance_scale == 1 else f", guidance {schedule.guidance_scale:g}"
    told = schedule.embedded_guidance
    embedded = "" if told is None else f", embedded guidance {told:g} (FluxGuidance)"
    note = f"; {schedule.note}" if schedule.note else ""
    return f"{schedule.steps} steps: {levels}; {sampler}{guidance}{embedded}{note}"


class FewStepSigmas(io.ComfyNode):
    """Noise levels for a few-step student."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_Sigmas",
            display_name="Few-Step Sigmas",
            category=GROUP,
            description="The exact noise levels that a few-step LoRA was trained for. A scheduler's own levels for the "
            "same number of steps are often others, which burns or blurs the clip.",
            search_aliases=["lcm", "lightning", "few step", "dmd", "manual sigmas", "schedule"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(
                    io.Combo,
                    "source",
                    options=["lora", "steps", "list"],
                    default="steps",
                    tooltip="Where the levels come from: lora = what the LoRA file says of itself; steps = evenly "
                    "spread over the steps and shifted; list = as written in sigmas.",
                ),
                field(
                    io.Combo,
                    "lora",
                    options=lora_names(),
                    default=NONE,
                    tooltip="LoRA file whose levels are taken (only for source lora).",
                ),
                field(
                    io.Int,
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Model steps, 0 to 1000. 0 = as the LoRA was trained, and 4 for source steps. A number "
                    "that the LoRA was not trained with spreads its levels anew. Not for source list.",
                ),
                field(
                    io.Float,
                    "shift",
                    default=USUAL_SHIFT,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Sigma shift, 0.01 to 100: more of the steps at high noise for more than 1 (only for "
                    "source steps). Most few-step LoRAs of Wan were trained with 5.",
                ),
                field(
                    io.String,
                    "sigmas",
                    default="1, 0.9375, 0.8333333, 0.625, 0",
                    tooltip="Levels from at most 1 down to 0, with commas between them (only for source list).",
                ),
                field(
                    io.Float,
                    "boundary",
                    default=0.875,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Noise level, 0 to 1, at which the high-noise model gives over to the low-noise one, for "
                    "the outputs high and low. Wan 2.2 changes at 0.875 (text to video) and 0.9 (image to video).",
                ),
            ],
            outputs=[
                io.Sigmas.Output(display_name="all", tooltip="All levels, for one model."),
                io.Sigmas.Output(display_name="high", tooltip="Steps that begin at or above the boundary."),
                io.Sigmas.Output(display_name="low", tooltip="Steps that begin below the boundary."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str = "", lora: str | None = None, **_: Any) -> str:
        return lora_stamp(lora) if source == "lora" else ""

    @classmethod
    @told
    def execute(cls, source: str, lora: str, steps: int, shift: float, sigmas: str, boundary: float) -> io.NodeOutput:
        from ..w2svd_core.sigmas import split_sigmas

        schedule = schedule_of(source, lora, steps, shift, sigmas)
        high, low = split_sigmas(schedule.sigmas, boundary)
        text = f"{told_schedule(schedule)}\n{max(len(high) - 1, 0)} high, {max(len(low) - 1, 0)} low"
        values = [as_sigmas(levels) for levels in (schedule.sigmas, high, low)]
        return io.NodeOutput(*values, ui=shown(cls, text))


# ---- the sampler


@dataclass(frozen=True)
class FewSteps:
    """A sampler function of ComfyUI's: x0 at each level, then noise for the next one.

    Attributes:
        eta: share of fresh noise, 0 (the probability-flow ODE, core's euler) to 1 (re-noising, core's lcm).
        noise: scale of the fresh noise.
    """

    eta: float
    noise: float = 1.0

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Any = None,
        disable: bool | None = None,
    ) -> Tensor:
        """Walk down the levels; `model` gives x0, as k-diffusion's samplers have it."""
        from tqdm.auto import trange

        from ..w2svd_core.flow import RectifiedFlow
        from ..w2svd_core.sampling import renewed

        extra, process = extra_args or {}, RectifiedFlow()
        levels: list[float] = sigmas.tolist()
        for i in trange(len(levels) - 1, disable=disable):
            x0 = model(x, x.new_full((len(x),), levels[i]), **extra)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x0})
            if levels[i + 1] == 0:
                x = x0
                continue
            noise = process.eps_from_x0(x, x0, levels[i])
            if self.eta:
                fresh = self.noise * fresh_noise(x, extra.get("seed"), levels[0], i)
                noise = renewed(noise, fresh, self.eta)
            x = process.noise(x0, noise, levels[i + 1]).to(x0.dtype)
        return x


def fresh_noise(like: Tensor, seed: int | None, first: float, step: int) -> Tensor:
    """Unit noise after a step, as the command line's sampler draws it: each clip by its own seed.

    Args:
        first: level at which the steps begin. Those of a second model begin below 1 and draw other noise.
    """
    from ..w2svd_core.randomness import noise_of_seeds

    later = round(1000 * (1 - first))
    seeds = [(seed or 0) + row for row in range(len(like))]
    return noise_of_seeds(like.shape[1:], seeds, later + step + 1).to(like)


def few_step_sampler(eta: float, noise: float = 1.0) -> Any:
    """A SAMPLER value."""
    from comfy.samplers import KSAMPLER

    walk = FewSteps(eta, noise)

    def few_step(model: Any, x: Tensor, sigmas: Tensor, **how: Any) -> Tensor:
        from comfy import model_management, model_sampling

        patcher = model.inner_model.model_patcher
        if not isinstance(patcher.get_model_object("model_sampling"), model_sampling.CONST):
            raise UserError(
                f"the few-step sampler is for flow-matching models, and {type(patcher.model).__name__} is none; "
                "choose another sampler for it"
            )

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            model_management.throw_exception_if_processing_interrupted()
            x0: Tensor = model(*args, **kwargs)
            return x0

        return walk(watched, x, sigmas, **how)

    return KSAMPLER(few_step)


class FewStepSampler(io.ComfyNode):
    """The way from level to level."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_Sampler",
            display_name="Few-Step Sampler",
            category=GROUP,
            description="How a few-step student goes from one noise level to the next, for flow-matching models. With "
            "the same seed it draws the noise that the command line draws.",
            search_aliases=["lcm", "euler", "dmd", "renoise"],
            inputs=[
                field(
                    io.Combo,
                    "mode",
                    options=["renoise", "ode", "mixed"],
                    default="renoise",
                    tooltip="renoise = fresh noise after each step, as core's lcm (most distilled LoRAs); ode = keeps "
                    "the noise that is there, as core's euler; mixed = some of both.",
                ),
                field(
                    io.Float,
                    "eta",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of fresh noise, 0 (ode) to 1 (renoise); only for mode mixed.",
                ),
                field(
                    io.Float,
                    "noise_scale",
                    default=1.0,
                    min=0.5,
                    max=1.5,
                    step=0.001,
                    tooltip="Multiplies the fresh noise, 0.5 to 1.5; 1 is what students are trained with, less makes "
                    "softer clips. Not for mode ode.",
                    advanced=True,
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @told
    def execute(cls, mode: str, eta: float, noise_scale: float) -> io.NodeOutput:
        return io.NodeOutput(few_step_sampler(ETA.get(mode, eta), noise_scale))


# ---- the noise


@dataclass(frozen=True)
class ClipNoise:
    """A NOISE value: each clip of a batch has its own seed, whatever its neighbours are."""

    seed: int

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        """Unit noise (B, C, F, H, W) on the CPU for a LATENT."""
        from ..w2svd_core.randomness import noise_of_seeds

        samples = latent["samples"]
        rows = latent.get("batch_index") or range(len(samples))
        seeds = [self.seed + int(row) for row in rows]
        return noise_of_seeds(samples.shape[1:], seeds, 0).to(samples.dtype)


class SeededNoise(io.ComfyNode):
    """The noise of the command line."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_Noise",
            display_name="Clip Noise",
            category=GROUP,
            description="The noise that python -m w2svd_core.sample draws for the same seed, so that the graph and "
            "the command line make the same clip. A clip's seed is this one plus its place in the batch.",
            search_aliases=["random noise", "seed"],
            inputs=[
                field(
                    io.Int,
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip=f"Seed of the first clip, 0 to {MAX_SEED}.",
                )
            ],
            outputs=[io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @told
    def execute(cls, seed: int) -> io.NodeOutput:
        return io.NodeOutput(ClipNoise(seed))


NODES: list[type[io.ComfyNode]] = [FewStepSigmas, FewStepSampler, SeededNoise]
