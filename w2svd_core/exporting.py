"""What `export` does: a LoRA in other keys or of another rank, LoRAs in a checkpoint, a full copy as a LoRA.

Each is measured by the model itself: its output before and after, for the same small random input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .assembly import located
from .backbones import TEACHERS
from .backbones.base import Backbone
from .config import load_recipe
from .errors import UserError
from .files import dtype_named, opened_safetensors, whole_folder, write_safetensors
from .lora_algebra import (
    Difference,
    Lora,
    acting,
    at_rank,
    difference,
    merge_files,
    merge_into,
    open_lora,
)
from .lora_files import Format, LoraMetadata, LoraPair, base_hash, read_changes, read_lora, write_lora
from .lora_metadata import METADATA_KEY
from .run import RunFolder
from .settings import Model
from .stages import with_trained_teacher
from .student_files import ABOUT, FOLDER, FULL_FOLDER, FULL_NATIVE

BUNDLED = "bundled"
TAKE_IT = "or take this one all the same with --any-base"


@dataclass(frozen=True)
class Base:
    """A base model to export with or against.

    Attributes:
        path: folder or native file, or "bundled".
        loras: that are merged into it, each path or path@strength.
        any: take it also for what was trained on another.
    """

    path: str
    loras: tuple[str, ...] = ()
    any: bool = False

    def load(self, family: Backbone, precision: str) -> nn.Module:
        """The model in a precision.

        Raises:
            UserError: as `Backbone.load`, or a LoRA does not fit.
        """
        place = located(Model(family=family.name, path=self.path)).path
        model = family.load(Path(place), dtype_named(precision)).eval().requires_grad_(False)
        merge_files(model, self.loras, family.keys)
        return model


# ---- the three exports


def convert(family: Backbone, path: Path, out: Path, format: Format, rank: int | None, base: Base | None) -> list[str]:
    """A LoRA file in other keys, and of another rank where one is given; returns what there is to tell.

    Args:
        base: that the outputs are compared with; None takes the bundled one if the LoRA is for it, and compares only
            the layers' updates if not.

    Raises:
        UserError: the LoRA is broken, not for the base's kind of model, or the file can't be written.
    """
    pairs, metadata = read_lora(path, family.keys)
    if beside := read_changes(path, family.keys):
        raise UserError(
            f"{path} also changes {len(beside)} biases, norms or tables ({next(iter(beside))}), which have no place in "
            "a converted LoRA; put it into a checkpoint by merge"
        )
    lines: list[str] = []
    kept = pairs
    if rank is not None:
        kept, error = at_rank(pairs, rank)
        lines.append(f"rank {_ranks(pairs)} became {rank}; of the updates {_percent(error)} is lost (Frobenius norm)")
    model = _model_for(family, metadata, base, path, lines)
    before = _output_with(family, model, Lora(pairs, source=str(path))) if model else None
    write_lora(out, kept, metadata, format=format, key_map=family.keys)
    written, _ = read_lora(out, family.keys)
    if model is None or before is None:
        largest, scale = _largest_update(pairs, written)
        lines.append(
            f"largest difference of the layers' updates: {largest:.2g} (of {scale:.2g}); the model itself was not "
            "asked, because no base is named"
        )
        return lines
    return [*lines, _measured(before, _output_with(family, model, Lora(written)))]


def merge(family: Backbone, texts: Sequence[str], out: Path, base: Base, precision: str) -> list[str]:
    """Put LoRAs into a checkpoint: a native file where `out` ends in .safetensors, else a diffusers folder.

    They are summed in float32 and cast to the precision once. What the last of the files that know it says of its
    sampling goes along.

    Raises:
        UserError: a LoRA is broken, for another kind of model, or trained on another base; the disk is full.
    """
    loras, about = zip(*(open_lora(text, family.keys) for text in texts), strict=True)
    lines: list[str] = []
    for at, metadata in enumerate(about):
        known = _trained_on(family, metadata, base, loras[:at])
        _accept(known, loras[at].source, metadata, base, lines)
    model = base.load(family, "fp32")
    with acting(model, loras):
        before = _output(family, model)
    merge_into(model, loras)
    metadata = next((found for found in reversed(about) if found), None)
    write_model(family, model, out, precision, metadata)
    del model  # the written one takes its place in memory
    written = family.load(out, torch.float32).eval()
    return [*lines, _measured(before, _output(family, written))]


def extract(family: Backbone, source: Path, out: Path, format: Format, rank: int, base: Base) -> list[str]:
    """The LoRA that a full copy is, measured from its base.

    Args:
        source: the full copy's folder or native file.

    Raises:
        UserError: no full copy of this base, or equal to it; the LoRA can't be written.
    """
    metadata = metadata_of(source)
    student = family.load(source, torch.float32).eval()
    precision = (metadata.base_precision if metadata else "") or "fp32"
    model = base.load(family, precision)
    own, lines = base_hash(model), list[str]()
    known = metadata is None or metadata.base_hash in ("", own)
    _accept(known, str(source), metadata, base, lines)
    model = model.float()
    found = difference(model.state_dict(), student.state_dict(), _layers(family, model, format), rank)
    if not found.pairs:
        raise UserError(f"the linear layers of {source} equal those of {base.path}, so there is no LoRA to extract")
    before = _output(family, student)
    if metadata:
        metadata = replace(metadata, base_hash=own, base_precision=precision)
    write_lora(out, found.pairs, metadata, format=format, key_map=family.keys)
    written, _ = read_lora(out, family.keys)
    return [*lines, _told(found), _measured(before, _output_with(family, model, Lora(written)))]


def _told(found: Difference) -> str:
    told = f"{len(found.pairs)} layers changed; at rank {_ranks(found.pairs)} {_percent(found.error)} of it is lost"
    return f"{told} (Frobenius norm), and {_percent(found.outside)} of the whole change is where a LoRA can't be"


def _layers(family: Backbone, model: nn.Module, format: Format) -> list[str]:
    """The linear layers that a file of a format can hold a LoRA of: those that take as much in its world."""
    native: Mapping[str, Tensor] = family.native_state(model) if format == "native" else {}
    names = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            theirs = native.get(f"{family.keys.native_module(name)}.weight", layer.weight)
            if theirs.shape[1:] == layer.weight.shape[1:]:
                names.append(name)
    return names


# ---- sources


def run_student(run: Path, base: Base | None) -> tuple[str, Path, Base]:
    """Family, native file and base of the full copy that a run trained; a base that is given goes over the run's own.

    Raises:
        UserError: the run's student is an adapter, it has none yet, or it began with random weights.
    """
    recipe = load_recipe(RunFolder.open(run).path / "recipe.yaml")
    if recipe.student.kind != "full":
        raise UserError(f"the student of {run} is an adapter, not a full copy: it is a LoRA already, in {run / FOLDER}")
    found = run / FOLDER / FULL_NATIVE
    if not found.is_file():
        raise UserError(f"{run} holds no student yet; finish it with --resume {run}, or take another run")
    if recipe.model.init == "first_frame":
        raise UserError(
            f"the student of {run} has more input channels than its base, which no LoRA can add; take the full copy in "
            f"{run / FOLDER} as it is"
        )
    if base is None:
        if recipe.model.init == "random":
            raise UserError(f"{run} began with random weights, so it has no base to be measured from; name a --model")
        model = with_trained_teacher(recipe, run).model
        base = Base(model.path, tuple(model.loras))
    return recipe.model.family, found, base


def metadata_of(model: Path) -> LoraMetadata | None:
    """What a full copy says of itself, in a native file's header or beside a folder's config; None for others'.

    Raises:
        UserError: it is not there, a LoRA, no safetensors file, or what it says is damaged.
    """
    if model.is_dir():
        for about in (model / ABOUT, model / FULL_FOLDER / ABOUT):
            if about.is_file():
                return LoraMetadata.from_strings({METADATA_KEY: about.read_text(encoding="utf-8")}, about)
        return None
    with opened_safetensors(model) as file:
        if any(".lora_" in key for key in file.keys()):  # noqa: SIM118 (not a dict)
            raise UserError(f"{model} is a LoRA, not a full copy; for another rank or other keys use convert")
        return LoraMetadata.from_strings(dict(file.metadata() or {}), model)


def _model_for(
    family: Backbone, metadata: LoraMetadata | None, base: Base | None, path: Path, lines: list[str]
) -> nn.Module | None:
    """The base to compare outputs with, in float32; None if there is none."""
    if base is None and not (family.name in TEACHERS and metadata and metadata.base_hash):
        return None
    precision = (metadata.base_precision if metadata else "") or "fp32"
    model = (base or Base(BUNDLED)).load(family, precision)
    known = metadata is None or metadata.base_hash in ("", base_hash(model))
    if base is None and not known:
        return None
    if not known:
        lines.append(f"note: {path} was trained on another base than {base.path if base else BUNDLED}")
    return model.float()


def _trained_on(family: Backbone, metadata: LoraMetadata | None, base: Base, before: Sequence[Lora]) -> bool:
    """Whether a LoRA is for the base, alone or with the LoRAs that are named before; True for one that does not say."""
    if metadata is None or not metadata.base_hash:
        return True
    model = base.load(family, metadata.base_precision or "fp32")
    if base_hash(model) == metadata.base_hash:
        return True
    merge_into(model, before)
    return bool(before) and base_hash(model) == metadata.base_hash


def _accept(known: bool, source: str, metadata: LoraMetadata | None, base: Base, lines: list[str]) -> None:
    if known or metadata is None:
        return
    trained = f"{source} was trained on another base than {base.path} ({metadata.base_class} {metadata.base_hash[:12]})"
    if not base.any:
        raise UserError(f"{trained}; name that one in --model, {TAKE_IT}")
    lines.append(f"note: {trained}")


# ---- checkpoints


def write_model(family: Backbone, model: nn.Module, out: Path, precision: str, metadata: LoraMetadata | None) -> None:
    """Write a model as one native file (a name in .safetensors) or as a diffusers folder.

    Raises:
        UserError: a weight is beyond the precision's range, the disk is full, or the place can't be written.
    """
    dtype = dtype_named(precision)
    for name, parameter in model.named_parameters():
        if not parameter.abs().max() <= torch.finfo(dtype).max:
            raise UserError(f"{out} was not written: {name} does not fit into {precision}; use bf16, or less strength")
    strings = metadata.to_strings() if metadata else {}
    if out.suffix == ".safetensors":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)  # one by one, so that there are never two whole models
        state = {name: tensor.to(dtype) for name, tensor in family.native_state(model).items()}
        write_safetensors(out, state, {**family.native_metadata(model), **strings})
        return
    with whole_folder(out) as folder:
        family.save_folder(model, folder, dtype)
        if strings:
            about = json.dumps(json.loads(strings[METADATA_KEY]), indent=2)
            (folder / ABOUT).write_text(about + "\n", encoding="utf-8")


# ---- measuring


def _output(family: Backbone, model: nn.Module) -> Tensor:
    x_t, sigma, condition = family.probe(model)
    with torch.no_grad():
        return family.predict(model, x_t, sigma, condition).float()


def _output_with(family: Backbone, model: nn.Module, lora: Lora) -> Tensor:
    with acting(model, [lora]):
        return _output(family, model)


def _measured(before: Tensor, after: Tensor) -> str:
    largest, scale = float((after - before).abs().max()), float(before.abs().max())
    share = f", {largest / scale:.1e} of it" if scale else ""
    return f"largest difference of the model's output: {largest:.1e} (of {scale:.2g}{share})"


def _largest_update(before: Mapping[str, LoraPair], after: Mapping[str, LoraPair]) -> tuple[float, float]:
    """The largest difference of the updates of two LoRAs of the same layers, and the first one's largest update."""
    largest = scale = 0.0
    for name, pair in before.items():
        update = pair.delta()
        largest = max(largest, float((after[name].delta() - update).abs().max()))
        scale = max(scale, float(update.abs().max()))
    return largest, scale


def _ranks(pairs: Mapping[str, LoraPair]) -> str:
    ranks = sorted({pair.rank for pair in pairs.values()})
    return f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
