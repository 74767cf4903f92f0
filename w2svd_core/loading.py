"""A student back from disk: from a run folder or from a LoRA file, put on its base and ready to sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .assembly import embedded_guidance, load_base
from .data.encoder_source import EncoderSource
from .errors import UserError
from .files import dtype_named, opened_safetensors
from .lora_algebra import Lora, acting
from .lora_files import LoraMetadata, base_hash, check_base, load_into_peft, read_changes, read_lora
from .roles import GENERATOR, Role, SharedModel
from .settings import Recipe
from .stages import with_trained_teacher
from .student_files import FOLDER, FULL_NATIVE, NATIVE


@dataclass(frozen=True)
class Loaded:
    """A model whose generator role is the student.

    Attributes:
        model: base and student.
        metadata: what the student's file says of it; None for files of others, and without a student.
        base: hash of the base's weights.
        beside: of a file of others, what it has for layers that take no adapter here, and for biases and norms.
    """

    model: SharedModel
    metadata: LoraMetadata | None
    base: str
    beside: Lora | None = None

    @contextlib.contextmanager
    def acting(self, role: Role, loras: Sequence[Lora] = ()) -> Iterator[None]:
        """Let more LoRAs act beside a role for a while, and those layers of the student that are no adapter's.

        Raises:
            UserError: one of them has a layer that the model lacks.
        """
        full = self.model.copy if role == GENERATOR else None
        own = [self.beside] if self.beside and role == GENERATOR else []
        with acting(self.model.base if full is None else full, [*own, *loras]):
            yield


def device() -> torch.device:
    """The first GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_run(recipe: Recipe, source: EncoderSource, run: Path) -> Loaded:
    """The student of a finished run on its base.

    Raises:
        UserError: there is no student yet, its file is broken, or the base has changed since.
    """
    recipe = with_trained_teacher(recipe, run)
    adapter, full = run / FOLDER / NATIVE, run / FOLDER / FULL_NATIVE
    if recipe.student.kind == "lora" and adapter.is_file():
        return load_adapter(recipe, source, adapter)
    if recipe.student.kind == "full" and full.is_file():
        return load_full(recipe, source, full)
    raise UserError(f"{run} holds no student yet; finish it with --resume {run}, or take another run")


def load_teacher(recipe: Recipe, source: EncoderSource) -> Loaded:
    """The base alone, in the teacher role."""
    return _with_adapter(recipe, source, 1)  # an idle adapter; without one the model would be copied


def load_adapter(recipe: Recipe, source: EncoderSource, path: Path) -> Loaded:
    """A LoRA file, native or diffusers', on the recipe's base.

    Raises:
        UserError: not a LoRA, broken, or made for another base or another kind of model.
    """
    from .backbones import backbone

    pairs, metadata = read_lora(path, backbone(recipe.model.family).keys)
    loaded = _with_adapter(recipe, source, max(pair.rank for pair in pairs.values()))
    check_base(metadata, loaded.base, path, recipe.model.precision)
    _, homeless = load_into_peft(loaded.model.base, GENERATOR, pairs)
    changes = {} if metadata else read_changes(path, loaded.model.backbone.keys)
    rest = {name: pairs[name] for name in homeless}
    beside = Lora(rest, source=str(path), changes=changes) if rest or changes else None
    return Loaded(loaded.model, metadata, loaded.base, beside)


def load_full(recipe: Recipe, source: EncoderSource, path: Path) -> Loaded:
    """A full-copy student from its native file, beside the recipe's base.

    Raises:
        UserError: broken, or made from another base.
    """
    family, base = load_base(recipe.model, source, recipe.seed)
    with opened_safetensors(path) as file:
        metadata = LoraMetadata.from_strings(dict(file.metadata() or {}), path)
    own = base_hash(base)
    check_base(metadata, own, path, recipe.model.precision)
    told = embedded_guidance(recipe.embedded)
    model = SharedModel(family, base.to(device()), critic_rank=0, student_rank=0, embedded=told)
    assert model.copy is not None
    model.copy.load_state_dict(family.load(path, dtype_named(recipe.model.precision)).state_dict())
    return Loaded(model, metadata, own)


def _with_adapter(recipe: Recipe, source: EncoderSource, rank: int) -> Loaded:
    family, base = load_base(recipe.model, source, recipe.seed)
    own = base_hash(base)
    told = embedded_guidance(recipe.embedded)
    model = SharedModel(family, base.to(device()), critic_rank=0, student_rank=rank, embedded=told)
    return Loaded(model, None, own)
