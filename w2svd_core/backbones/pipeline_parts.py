"""Where the parts of a diffusers pipeline lie: in its own folders, or where a recipe says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..settings import Model


@dataclass(frozen=True)
class Part:
    """A part of a pipeline.

    Attributes:
        name: as people call it.
        folder: its folder in a pipeline.
        setting: of `model`, that names it; "" = it goes with the part in `beside`.
        marks: files that show that a folder holds it; one is enough.
        gigabytes: of its published weights in 16 bits; 0 for a part without weights.
        beside: setting of another part, which brings this one along.
    """

    name: str
    folder: str
    setting: str
    marks: tuple[str, ...] = ("config.json",)
    gigabytes: float = 0
    beside: str = ""


def tokenizer_part(folder: str = "tokenizer") -> Part:
    """The tokenizer of a pipeline, which a text encoder brings along."""
    marks = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
    return Part("tokenizer", folder, "tokenizer", marks, beside="text_encoder")


def place_of(part: Part, settings: Model, repository: str) -> Path:
    """The folder or file of a part: what its own setting names, else the part beside the model.

    Args:
        repository: where the pipeline is published, for messages.

    Raises:
        UserError: it is not there; the sentence says what was looked for, and where it is published.
    """
    named = _named(part.setting, settings)
    if named is not None and named.is_file():
        return named
    found = optional_place_of(part, settings)
    if found is None:
        raise UserError(_missing(part, settings, repository))
    return found


def optional_place_of(part: Part, settings: Model) -> Path | None:
    """The folder of a part that has a default of its own; None where there is none."""
    return next((place for place in _candidates(part, settings) if _holds(place, part)), None)


def folder_of(place: Path) -> Path:
    """The folder that a place is or, being a file, lies in: a tokenizer is several files."""
    return place.parent if place.is_file() else place


def _named(setting: str, settings: Model) -> Path | None:
    named: str = getattr(settings, setting) if setting else ""
    return Path(named) if named else None


def _candidates(part: Part, settings: Model) -> Iterator[Path]:
    """Folders in which a part may lie, the likeliest first."""
    named, beside = _named(part.setting, settings), _named(part.beside, settings)
    if named is not None:
        yield from (named, named / part.folder)
        return
    if beside is not None:
        yield from (beside, beside / part.folder, beside.parent / part.folder)
    base = Path(settings.path)
    inside = base.parent if base.suffix == ".safetensors" else base
    yield inside / part.folder
    if inside.name == "transformer":  # the model's own folder in a pipeline
        yield inside.parent / part.folder


def _holds(place: Path, part: Part) -> bool:
    return any((place / mark).is_file() for mark in part.marks)


def _missing(part: Part, settings: Model, repository: str) -> str:
    looked = ", ".join(str(place / part.marks[0]) for place in _candidates(part, settings))
    what = "its folder or .safetensors file" if part.gigabytes else "its folder"
    size = f", {part.gigabytes:g} GB in 16 bits" if part.gigabytes else ""
    return (
        f"the model's {part.name} is not there (looked for {looked}); name {what} in model.{part.setting}, which is "
        f"published in the repository {repository} (folder {part.folder}{size})"
    )
