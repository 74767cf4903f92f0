"""What ComfyUI's "Load Diffusion Model" puts out, as the parts of a training. The Train node calls this.

All of it runs inside `torch.inference_mode(False)`. ComfyUI is imported inside functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..assembly import Job, job_of, roles_of
from ..data.encoder_source import EncoderSource
from ..data.training_set import TrainingSet
from ..errors import UserError, out_of_memory
from ..memory import free_memory
from ..objectives import clips_for
from ..settings import Recipe
from . import family_of_keys
from .comfy_backbone import NativeBackbone, refuse_other_processes
from .comfy_data import embedded_guidance as embedded_guidance
from .comfy_data import native_data as native_data
from .comfy_model import NativeModel, family_of_model, give_back, load, training_time
from .comfy_vae import NativeSource as NativeSource

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def settings_of(patcher: Any) -> dict[str, Any]:
    """What a recipe of this MODEL must say of it, by key.

    `model.path` is the file that it was loaded from, where ComfyUI tells; of LoRAs that other nodes put on it, nothing.
    """
    computes_in = patcher.model.manual_cast_dtype or patcher.model.get_dtype()  # the first for weights of 8 bits
    found: dict[str, Any] = {"model.precision": PRECISIONS.get(computes_in, "fp32")}
    _, arguments, *_ = getattr(patcher, "cached_patcher_init", None) or (None, ())
    place = next(iter(arguments), None)
    if isinstance(place, str) and Path(place).is_file():
        found["model.path"] = place
    return found


def family_name(patcher: Any) -> str:
    """The family of a MODEL, by its name in `FAMILIES`; "" for one that this project does not know."""
    known = family_of_keys(family_of_model(patcher.model))
    return known.name if known else ""


@contextlib.contextmanager
def mounted(patcher: Any) -> Iterator[NativeModel]:
    """A MODEL, alone on its device and ready for autograd; given back as it was.

    Its weights stay the same numbers. Those that came out of a node's inference mode are ordinary tensors afterwards,
    which every node takes as well.

    Raises:
        UserError: it is no flow-matching model, has no linear layers, or is one that ComfyUI can't load whole.
    """
    import comfy.model_management as management

    if torch.is_inference_mode_enabled():
        raise RuntimeError("a training needs torch.inference_mode(False)")
    refuse_other_processes(patcher)
    management.unload_all_models()
    management.soft_empty_cache()
    whole = _whole(patcher)
    load(whole)
    with training_time():
        base = NativeModel(whole)
        try:
            yield base
        finally:
            base.leave()
            give_back(whole.model)
            with torch.inference_mode():
                management.unload_all_models()
            free_memory()
            management.soft_empty_cache()


@contextlib.contextmanager
def native_job(patcher: Any, recipe: Recipe, data: TrainingSet, source: EncoderSource) -> Iterator[Job]:
    """A training of a MODEL, which `job.carry_out` takes as its `make`, for as long as the context lasts.

    Args:
        patcher: the MODEL; patches that are on it (LoRAs, say) belong to the base.
        recipe: with `settings_of(patcher)` in it.
        data: `native_data`'s.
        source: `NativeSource`, or any other that decodes the MODEL's latents.

    Raises:
        UserError: as `mounted`; or the recipe asks for what a native MODEL can't do.
    """
    if recipe.student.kind != "lora":
        raise UserError("a native MODEL trains a LoRA, not a full copy; set student.kind lora")
    if recipe.first:
        raise UserError("a native MODEL is not fine-tuned before it is distilled; leave first empty")
    if (key := clips_for(recipe)) and data.batch([0], torch.device("cpu"))[0] is None:
        raise UserError(f"{key} needs clips, and there are prompts alone; connect clips, or switch that off")
    with mounted(patcher) as base:
        model = roles_of(recipe, NativeBackbone(base), base)
        yield job_of(recipe, model, source, data)


def _whole(patcher: Any) -> Any:
    """A handle whose weights lie on the device as long as they are needed.

    ComfyUI's own way of late (weights that stream in from the file as layers ask for them) hands out memory that is
    used again before the backward pass: such a model is read from its file once more, the MODEL itself is left alone.
    """
    if not getattr(patcher, "is_dynamic", bool)():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise UserError(
            "this MODEL streams its weights and does not say from which file; load it by ComfyUI's own Load Diffusion "
            "Model, or start ComfyUI with --disable-dynamic-vram"
        ) from error
