"""LoRA files in the graph: put on a model, saved, converted; and the shifted teacher to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..w2svd_core.errors import UserError
from .compat import CATEGORY, field, io, schema, told, widgets
from .native_lora import NativeLora, family_keys, of_socket, put_on, read_native
from .places import NONE, lora_file, lora_names, lora_stamp, new_lora_file
from .sampling import ETA, as_sigmas, few_step_sampler, told_schedule, usual_schedule
from .shown import shown

if TYPE_CHECKING:
    from torch import Tensor

    from ..w2svd_core.lora_metadata import LoraMetadata

AS_TRAINED = "as trained"  # the sampler that a LoRA says of itself
GROUP = f"{CATEGORY}/lora"
FORMATS = ["native", "diffusers"]
KEYS = "native = ComfyUI's own keys; diffusers = keys for its pipelines, which core's loaders do not know."


def _lora_choice(tooltip: str, **keywords: Any) -> Any:
    return field(io.Combo, "lora", options=lora_names(), default=NONE, tooltip=tooltip, **keywords)


def _new_name(default: str, tooltip: str) -> list[Any]:
    return [
        field(io.String, "name", default=default, tooltip=tooltip),
        field(
            io.Combo,
            "if_exists",
            options=["number", "replace"],
            default="number",
            tooltip="What happens if the file is there already: number = a number is added to the name; replace = it "
            "is overwritten.",
        ),
    ]


def _format() -> Any:
    return field(io.Combo, "format", options=FORMATS, default="native", tooltip=f"Names of the layers: {KEYS}")


# ---- loading


def read_for(model: Any, name: str, lora: Mapping[str, Tensor] | None) -> NativeLora:
    """The LoRA for a MODEL: what came in over the socket if there is something, else the chosen file.

    Raises:
        UserError: both, or none; or as `read_native`.
    """
    if lora is None:
        path = lora_file(name)
        return read_native(path, family_keys(model), name)
    if name not in ("", NONE):
        raise UserError(f"there are two LoRAs, {name} and the one on lora_model; choose none as the file, or unlink")
    return of_socket(lora, family_keys(model))


class LoadFewStepLora(io.ComfyNode):
    """A few-step LoRA on a model, with all that sampling it needs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_LoadLoRA",
            display_name="Load Few-Step LoRA",
            category=GROUP,
            description="Puts a LoRA on a model, whatever keys it was saved with (native, diffusers, PEFT, kohya), "
            "says which of its layers matched, and gives the noise levels and the sampler that it was trained for.",
            search_aliases=["lora loader", "lightning", "lcm", "dmd"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Model, "model", tooltip="Model that the LoRA is for, as Load Diffusion Model gives it."),
                _lora_choice("LoRA file from models/loras (.safetensors)."),
                field(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Multiplies the LoRA, -10 to 10; a few-step LoRA works at 1.",
                ),
                field(
                    io.LoraModel,
                    "lora_model",
                    optional=True,
                    tooltip="A LoRA straight from training, instead of a file.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA."),
                io.Sigmas.Output(display_name="sigmas", tooltip="Noise levels that it was trained for."),
                io.Sampler.Output(display_name="sampler", tooltip="Sampler that it was trained for."),
                io.String.Output(display_name="report", tooltip="What matched, and how to sample it."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **_: Any) -> str:
        return lora_stamp(lora)

    @classmethod
    @told
    def execute(
        cls, model: Any, lora: str, strength: float, lora_model: Mapping[str, Tensor] | None = None
    ) -> io.NodeOutput:
        found = read_for(model, lora, lora_model)
        patched, fit = put_on(model, found, strength)
        schedule = found.about.default if found.about else usual_schedule()
        origin = "" if found.about else " (the LoRA names none; this is the usual one)"
        note = f"\nnote: {found.about.note}" if found.about and found.about.note else ""
        text = f"{fit.told()}\n{told_schedule(schedule)}{origin}{note}"
        values = patched, as_sigmas(schedule.sigmas), few_step_sampler(ETA[schedule.sampler]), text
        return io.NodeOutput(*values, ui=shown(cls, text))


class WeakLora(io.ComfyNode):
    """The real-DiT shift, to be looked at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_WeakLoRA",
            display_name="Weak LoRA Apply",
            category=GROUP,
            description="The shifted teacher: the base with a weak share of the adapter, which is what the student's "
            "gradient comes from in weak-to-strong distillation. Sample it to see what alpha_weak does.",
            search_aliases=["real dit shift", "weak weight", "alpha weak"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.Model, "model", tooltip="The teacher."),
                _lora_choice("Adapter file from models/loras; none if lora_model is linked."),
                *widgets(["matching.alpha_weak"]),
                field(io.LoraModel, "lora_model", optional=True, tooltip="An adapter straight from training."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The teacher with the weak adapter."),
                io.String.Output(display_name="report", tooltip="What matched."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **_: Any) -> str:
        return lora_stamp(lora)

    @classmethod
    @told
    def execute(
        cls, model: Any, lora: str, matching_alpha_weak: float, lora_model: Mapping[str, Tensor] | None = None
    ) -> io.NodeOutput:
        patched, fit = put_on(model, read_for(model, lora, lora_model), matching_alpha_weak)
        text = f"{fit.told()}\nbase + {matching_alpha_weak:g} of the adapter"
        return io.NodeOutput(patched, text, ui=shown(cls, text))


# ---- saving


def with_schedule(about: LoraMetadata | None, sigmas: Tensor | None, sampler: str) -> LoraMetadata | None:
    """What is known of a LoRA with another first schedule; as it is without sigmas.

    Guidance and note stay those of its schedule of as many steps, else of its first one.

    Args:
        sampler: one of `SAMPLERS`, or `AS_TRAINED`, which is renoise for a LoRA that says nothing of itself.

    Raises:
        UserError: the sigmas do not fall to 0.
    """
    if sigmas is None:
        return about
    from ..w2svd_core.lora_metadata import LoraMetadata, Schedule
    from ..w2svd_core.students import shift_of

    levels = tuple(float(f"{level:.7g}") for level in sigmas.tolist())  # what is left of the digits in float32
    known = Schedule(levels)  # checks the levels
    if about is not None:
        known = next((one for one in about.schedules if one.steps == known.steps), about.default)
    first = replace(known, sigmas=levels, shift=shift_of(levels))
    if sampler != AS_TRAINED:
        first = replace(first, sampler=sampler)
    if about is None:
        return LoraMetadata(method="", schedules=(first,), base_class="", base_hash="")
    others = [one for one in about.schedules if one.steps != first.steps]
    return replace(about, schedules=(first, *others))


def write_socket(
    lora: Mapping[str, Tensor], about: LoraMetadata | None, path: Path, format: str, precision: str
) -> int:
    """Write a LORA_MODEL, and return how many layers it has.

    Args:
        format: native or diffusers.
        precision: of the written numbers: keep, fp32, bf16 or fp16.

    Raises:
        UserError: it is empty, its layers have no names in diffusers, or the file can't be written.
    """
    from ..w2svd_core.backbones import USUAL, backbone, family_of_lora
    from ..w2svd_core.files import dtype_named, write_safetensors
    from ..w2svd_core.lora_files import lora_of, write_lora

    if not lora:
        raise UserError("there is nothing to save: the LORA_MODEL is empty; link the output of a training")
    if precision != "keep":
        dtype = dtype_named(precision)
        lora = {key: value.to(dtype) if not key.endswith(".alpha") else value for key, value in lora.items()}
        odd = next((key for key, value in lora.items() if not value.isfinite().all()), None)
        if odd:
            raise UserError(f"{odd} has numbers that are not finite in {precision}; save with bf16 or fp32")
    family = family_of_lora(lora) if format == "diffusers" else backbone(USUAL)  # others' native keys stay as they are
    keys = family.keys
    pairs, _, unknown = lora_of(lora, {}, keys, Path("the LORA_MODEL"))
    plain = pairs and not unknown and not any(key.endswith((".diff", ".diff_b")) for key in lora)
    if plain:
        write_lora(path, pairs, about, format=format, key_map=keys)  # type: ignore[arg-type]  # one of FORMATS
        return len(pairs)
    if format == "diffusers":
        odd = (*unknown, *(key for key in lora if key.endswith((".diff", ".diff_b"))))[0]
        raise UserError(f"{odd} has no place in a LoRA of diffusers; save it as native")
    write_safetensors(path, lora, about.to_strings() if about else {})
    return sum(".lora_up" in key or ".lora_B" in key for key in lora)


class SaveLora(io.ComfyNode):
    """A LORA_MODEL as a file that every loader finds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_SaveLoRA",
            display_name="Save Few-Step LoRA",
            category=GROUP,
            description="Writes a trained LoRA into models/loras, with the noise levels that it was trained for "
            "inside, so that Load Few-Step LoRA and Few-Step Sigmas know how to sample it.",
            search_aliases=["save lora", "export lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                field(io.LoraModel, "lora", tooltip="The LoRA, as a training gives it."),
                *_new_name("w2svd/student", "Name of the file in models/loras, folders before it if you like."),
                _format(),
                field(
                    io.Combo,
                    "precision",
                    options=["keep", "fp32", "bf16", "fp16"],
                    default="keep",
                    tooltip="Number format of the file: keep = as trained; bf16 and fp16 halve it.",
                ),
                field(
                    io.Combo,
                    "sampler",
                    options=[AS_TRAINED, "renoise", "euler"],
                    default=AS_TRAINED,
                    tooltip="Sampler that goes with sigmas (only if sigmas is linked): as trained = what the LoRA says "
                    "of itself, else renoise; renoise = core's lcm.",
                ),
                field(
                    io.Sigmas,
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels to write into the file, as its first schedule. Without a link those of the "
                    "training are kept.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    @told
    def execute(
        cls,
        lora: Mapping[str, Tensor],
        name: str,
        if_exists: str,
        format: str,
        precision: str,
        sampler: str,
        sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        path = new_lora_file(name, if_exists == "replace")
        about = with_schedule(getattr(lora, "about", None), sigmas, sampler)
        layers = write_socket(lora, about, path, format, precision)
        how = told_schedule(about.default) if about else "no schedule inside; link sigmas to write one"
        text = f"{path.name}: {layers} layers, {format} keys\n{how}"
        return io.NodeOutput(str(path), ui=shown(cls, text))


class ConvertLora(io.ComfyNode):
    """A LoRA file in other keys or of another rank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_ConvertLoRA",
            display_name="Convert LoRA",
            category=GROUP,
            description="Writes a LoRA with other keys (native, diffusers) or of another rank into models/loras, "
            "and says how far the result is from the original.",
            search_aliases=["lora keys", "resize lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                _lora_choice("LoRA file of a video model: native, diffusers', PEFT's or kohya's keys."),
                _format(),
                field(
                    io.Int,
                    "rank",
                    default=0,
                    min=0,
                    max=8192,
                    tooltip="Rank of the result, 1 to 8192: the nearest LoRA of that rank. 0 = as it is.",
                ),
                *_new_name("", "Name of the new file in models/loras; empty = the old name with the format after it."),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="The file that was written."),
                io.String.Output(display_name="report", tooltip="How far it is from the original."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str | None = None, **_: Any) -> str:
        return lora_stamp(lora)

    @classmethod
    @told
    def execute(cls, lora: str, format: str, rank: int, name: str, if_exists: str) -> io.NodeOutput:
        from ..w2svd_core.backbones import family_of_lora
        from ..w2svd_core.exporting import convert
        from ..w2svd_core.files import opened_safetensors

        source = lora_file(lora)
        path = new_lora_file(name or f"{lora.removesuffix('.safetensors')}_{format}", if_exists == "replace")
        if path.exists() and path.samefile(source):
            raise UserError(f"{lora} can't take its own place; write another name")
        with opened_safetensors(source) as file:
            family = family_of_lora(list(file.keys()))
        lines = convert(family, source, path, format, rank or None, None)  # type: ignore[arg-type]
        text = "\n".join([path.name, *lines])
        return io.NodeOutput(str(path), text, ui=shown(cls, text))


NODES: list[type[io.ComfyNode]] = [LoadFewStepLora, SaveLora, ConvertLora, WeakLora]
