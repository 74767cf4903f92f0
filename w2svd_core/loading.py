"""A student back from disk: from a run folder or from a LoRA file, put on its base and ready to sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .assembly import Encoders, load_base
from .errors import UserError
from .files import dtype_named, read_safetensors
from .lora_files import LoraMetadata, LoraPair, base_hash, check_base, load_into_peft, read_lora
from .roles import GENERATOR, SharedModel
from .settings import Recipe
from .students import FOLDER, FULL_NATIVE, NATIVE


@dataclass(frozen=True)
class Loaded:
    """A model whose generator role is the student.

    Attributes:
        model: base and student.
        metadata: what the student's file says of it; None for files of others, and without a student.
        base: hash of the base's weights.
    """

    model: SharedModel
    metadata: LoraMetadata | None
    base: str


def device() -> torch.device:
    """The first GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_run(recipe: Recipe, encoders: Encoders, run: Path) -> Loaded:
    """The student of a finished run on its base.

    Raises:
        UserError: there is no student yet, its file is broken, or the base has changed since.
    """
    adapter, full = run / FOLDER / NATIVE, run / FOLDER / FULL_NATIVE
    if recipe.student.kind == "lora" and adapter.is_file():
        return load_adapter(recipe, encoders, adapter)
    if recipe.student.kind == "full" and full.is_file():
        return load_full(recipe, encoders, full)
    raise UserError(f"{run} holds no student yet; finish it with --resume {run}, or take another run")


def load_teacher(recipe: Recipe, encoders: Encoders) -> Loaded:
    """The base alone, in the teacher role."""
    return _with_adapter(recipe, encoders, 1)  # an idle adapter; without one the model would be copied


def load_adapter(recipe: Recipe, encoders: Encoders, path: Path) -> Loaded:
    """A LoRA file, native or diffusers', on the recipe's base.

    Raises:
        UserError: not a LoRA, broken, made for another base, or with layers that take no adapter here.
    """
    from .backbones import backbone

    pairs, metadata = read_lora(path, backbone(recipe.model.family).keys)
    loaded = _with_adapter(recipe, encoders, max(pair.rank for pair in pairs.values()))
    check_base(metadata, loaded.base, path, recipe.model.precision)
    _fill(loaded.model, pairs, path)
    return Loaded(loaded.model, metadata, loaded.base)


def load_full(recipe: Recipe, encoders: Encoders, path: Path) -> Loaded:
    """A full-copy student from its native file, beside the recipe's base.

    Raises:
        UserError: broken, or made from another base.
    """
    family, base = load_base(recipe.model, encoders, recipe.seed)
    metadata = LoraMetadata.from_strings(read_safetensors(path)[1], path)
    own = base_hash(base)
    check_base(metadata, own, path, recipe.model.precision)
    model = SharedModel(family, base.to(device()), critic_rank=0, student_rank=0)
    assert model.copy is not None
    model.copy.load_state_dict(family.load(path, dtype_named(recipe.model.precision)).state_dict())
    return Loaded(model, metadata, own)


def _with_adapter(recipe: Recipe, encoders: Encoders, rank: int) -> Loaded:
    family, base = load_base(recipe.model, encoders, recipe.seed)
    own = base_hash(base)
    return Loaded(SharedModel(family, base.to(device()), critic_rank=0, student_rank=rank), None, own)


def _fill(model: SharedModel, pairs: dict[str, LoraPair], path: Path) -> None:
    _, homeless = load_into_peft(model.base, GENERATOR, pairs)
    if homeless:
        raise UserError(
            f"{path} has {len(homeless)} layers that take no adapter here ({', '.join(homeless[:3])}); "
            f"this program trains and samples adapters of {', '.join(model.backbone.lora_targets)}"
        )
