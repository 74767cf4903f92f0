"""Model families. A family is one file here; no code outside this folder asks for one by name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from .base import Backbone, KeyMap


def _wan() -> Backbone:
    from .wan import BACKBONE

    return BACKBONE


def _hunyuan_video() -> Backbone:
    from .hunyuan_video import BACKBONE

    return BACKBONE


def _hunyuan_video15() -> Backbone:
    from .hunyuan15 import BACKBONE

    return BACKBONE


def _cosmos() -> Backbone:
    from .cosmos import BACKBONE

    return BACKBONE


def _animatediff() -> Backbone:
    from .animatediff import BACKBONE

    return BACKBONE


def _image_unet() -> Backbone:
    from .image_unet import BACKBONE

    return BACKBONE


FAMILIES: dict[str, Callable[[], Backbone]] = {
    "wan": _wan,
    "hunyuan_video": _hunyuan_video,
    "hunyuan_video15": _hunyuan_video15,
    "cosmos": _cosmos,
    "animatediff": _animatediff,
    "image_unet": _image_unet,
}

RECIPES = {  # whose settings a training has where nothing else says
    "wan": "wan_t2v_1_3b",
    "hunyuan_video": "hunyuan_video_t2v",
    "hunyuan_video15": "hunyuan_video15_t2v",
    "cosmos": "cosmos_t2v_2b",
}
TEACHERS = {"wan": "portrait_teacher.safetensors"}  # the bundled ones, in assets/
USUAL = "wan"  # the family of a model that is not known


def backbone(family: str) -> Backbone:
    """The backbone of a family.

    Raises:
        UserError: there is no such family.
    """
    if family not in FAMILIES:
        raise UserError(f"model.family {family!r} is not known; use one of: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[family]()


def family_of_keys(keys: KeyMap | None) -> Backbone | None:
    """The family with these very names of layers; None for a model that this project does not know."""
    return next((family for family in map(backbone, FAMILIES) if family.keys is keys), None)


def family_of_lora(keys: Collection[str], model: str = "") -> Backbone:
    """The family whose model has a place for every key of a LoRA file; the first one where none has, to refuse it.

    HunyuanVideo's blocks have Flux's names; that the file is for a video model is for the caller to know. They have
    those of HunyuanVideo 1.5, too: between families that share names the base decides.

    Args:
        model: folder or file of the base; "" where it is not known, and what is done with the names is the same.
    """
    from ..lora_files import has_place

    families = [backbone(name) for name in FAMILIES]
    fitting = [family for family in families if all(has_place(key, family.keys) for key in keys)]
    if model and len(fitting) > 1:
        fitting = [family for family in fitting if _reads(family, model)] or fitting
    return next(iter(fitting), families[0])


def family_of_model(model: str) -> Backbone:
    """The family that reads a model on disk; the first one where none does, to refuse it."""
    families = [backbone(name) for name in FAMILIES]
    return next((family for family in families if _reads(family, model)), families[0])


def _reads(family: Backbone, model: str) -> bool:
    """Whether a model on disk is of a family, before anything large is loaded."""
    import torch

    from ..settings import Model

    try:
        family.encoder_source(Model(family=family.name, path=model), torch.device("cpu"))
    except UserError:
        return False
    return True
