"""Where the encoders of a Wan lie: in the folders of its diffusers pipeline, or where a recipe says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..settings import Model
from .wan_variants import VARIANTS, Kind


@dataclass(frozen=True)
class Part:
    """A part of a pipeline.

    Attributes:
        name: as people call it.
        folder: its folder in a pipeline.
        setting: of `model`, that names it.
        marks: files that show that a folder holds it; one is enough.
        gigabytes: of its published weights in 16 bits; 0 for a part without weights.
    """

    name: str
    folder: str
    setting: str
    marks: tuple[str, ...] = ("config.json",)
    gigabytes: float = 0


VAE_2_1 = Part("VAE", "vae", "vae", gigabytes=0.25)
VAE_2_2 = Part("VAE", "vae", "vae", gigabytes=1.4)
TEXT_ENCODER = Part("text encoder", "text_encoder", "text_encoder", gigabytes=11.4)
TOKENIZER = Part("tokenizer", "tokenizer", "tokenizer", ("tokenizer.json", "spiece.model", "tokenizer_config.json"))
IMAGE_ENCODER = Part("image encoder", "image_encoder", "image_encoder", gigabytes=1.3)
IMAGE_PROCESSOR = Part("image processor", "image_processor", "image_encoder", ("preprocessor_config.json",))
REPOSITORY = {"t2v": VARIANTS[0].repository, "i2v": VARIANTS[2].repository, "ti2v": VARIANTS[3].repository}


def place_of(part: Part, settings: Model, kind: Kind) -> Path:
    """The folder or file of a part: what its own setting names, else the part beside the model.

    Raises:
        UserError: it is not there; the sentence says what was looked for, and where it is published.
    """
    named = _named(part, settings)
    if named is not None and named.is_file():
        return named
    found = next((place for place in _candidates(part, settings) if _holds(place, part)), None)
    if found is None:
        raise UserError(_missing(part, settings, kind))
    return found


def optional_place_of(part: Part, settings: Model) -> Path | None:
    """The folder of a part that has a default of its own; None where there is none."""
    return next((place for place in _candidates(part, settings) if _holds(place, part)), None)


def _named(part: Part, settings: Model) -> Path | None:
    named: str = getattr(settings, part.setting)
    return Path(named) if named else None


def _candidates(part: Part, settings: Model) -> Iterator[Path]:
    """Folders in which a part may lie, the likeliest first."""
    named = _named(part, settings)
    if named is not None:
        yield from (named, named / part.folder)
        if part != IMAGE_PROCESSOR:
            return
        yield named.parent / part.folder
    if part == TOKENIZER and settings.text_encoder:  # a text encoder brings its tokenizer along
        beside = Path(settings.text_encoder)
        yield from (beside / part.folder, beside.parent / part.folder)
    base = Path(settings.path)
    inside = base.parent if base.suffix == ".safetensors" else base
    yield inside / part.folder
    if inside.name == "transformer":  # the model's own folder in a pipeline
        yield inside.parent / part.folder


def _holds(place: Path, part: Part) -> bool:
    return any((place / mark).is_file() for mark in part.marks)


def _missing(part: Part, settings: Model, kind: Kind) -> str:
    looked = ", ".join(str(place / part.marks[0]) for place in _candidates(part, settings))
    what = "its folder or .safetensors file" if part.gigabytes else "its folder"
    size = f", {part.gigabytes:g} GB in 16 bits" if part.gigabytes else ""
    return (
        f"the model's {part.name} is not there (looked for {looked}); name {what} in model.{part.setting}, which is "
        f"published in the repository {REPOSITORY[kind]} (folder {part.folder}{size})"
    )
