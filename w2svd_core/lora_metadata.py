"""What a few-step student was trained for, and how to sample it: metadata that travels inside a LoRA file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import UserError
from .sigmas import check_sigmas

SAMPLERS = ("renoise", "euler")
METADATA_KEY = "w2svd"
METADATA_FORMAT = 1


@dataclass(frozen=True)
class Schedule:
    """One way to sample a student that was tried and holds.

    Attributes:
        sigmas: descending from at most 1, ending in 0; one step between each two.
        sampler: "renoise" (fresh noise after each x0) or "euler".
        shift: the sigma shift that the list came from, None when it was written by hand.
        guidance_scale: u + g (c - u); 1.0 means none.
        embedded_guidance: that the model is told as an input; None for a model that takes none.
        note: a remark for people.
    """

    sigmas: tuple[float, ...]
    sampler: str = "renoise"
    shift: float | None = None
    guidance_scale: float = 1.0
    embedded_guidance: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        try:
            check_sigmas(self.sigmas)
        except ValueError as error:
            raise UserError(str(error)) from error
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler {self.sampler!r} is unknown; use one of {', '.join(SAMPLERS)}")
        if self.shift is not None and not (math.isfinite(self.shift) and self.shift > 0):
            raise UserError(f"shift {self.shift} must be a positive number")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise UserError(f"guidance_scale {self.guidance_scale} must be 0 or more")

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class LoraMetadata:
    """What a student is and how to use it; travels inside the file.

    Attributes:
        method: the objective, for example "w2s" or "dmd".
        schedules: validated schedules; the first is the default.
        base_class: class of the base model; base_hash: `base_hash` of the weights that it was trained on;
            base_precision: their number format ("bf16"), which is part of the hash; "" in older files.
        alpha_weak: scale of the fake adapter in the real score; None where the method has none.
        teacher_guidance: guidance of the real score; None where there was none to set.
        version: of the program that wrote it; recipe: name of the recipe.
    """

    method: str
    schedules: tuple[Schedule, ...]
    base_class: str
    base_hash: str
    alpha_weak: float | None = None
    teacher_guidance: float | None = None
    version: str = ""
    recipe: str = ""
    note: str = ""
    base_precision: str = ""

    def __post_init__(self) -> None:
        if not self.schedules:
            raise UserError("LoRA metadata needs at least one schedule (sigmas and sampler)")

    @property
    def default(self) -> Schedule:
        return self.schedules[0]

    def to_strings(self) -> dict[str, str]:
        """safetensors metadata: all of it as JSON in `w2svd`, and flat copies of the default for people."""
        first = self.default
        flat = {
            "method": self.method,
            "alpha_weak": self.alpha_weak,
            "sigmas": ", ".join(f"{sigma:g}" for sigma in first.sigmas),
            "sampler": first.sampler,
            "shift": first.shift,
            "guidance_scale": first.guidance_scale,
            "embedded_guidance": first.embedded_guidance,
            "base_class": self.base_class,
            "base_hash": self.base_hash,
            "base_precision": self.base_precision,
            "version": self.version,
            "recipe": self.recipe,
        }
        strings = {f"{METADATA_KEY}.{key}": str(value) for key, value in flat.items() if value not in (None, "")}
        return {
            METADATA_KEY: json.dumps({"format": METADATA_FORMAT, **asdict(self)}, sort_keys=True),
            **strings,
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], path: Path | str = "the file") -> LoraMetadata | None:
        """Read `to_strings` back; None when the file was not written by this project.

        Raises:
            UserError: the entry is damaged, written by a newer version, or holds an invalid schedule.
        """
        if METADATA_KEY not in strings:
            return None
        try:
            values = json.loads(strings[METADATA_KEY])
            if int(values.pop("format")) > METADATA_FORMAT:
                raise UserError("it was written by a newer version of this project; update it")
            values["schedules"] = tuple(_schedule(item) for item in values["schedules"])
            known = {field.name for field in fields(cls)}
            return cls(**{key: value for key, value in values.items() if key in known})
        except UserError as error:
            raise UserError(f"{path}: metadata entry {METADATA_KEY!r} can't be used: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: metadata entry {METADATA_KEY!r} is damaged; export the LoRA again") from error


def _schedule(item: Mapping[str, Any]) -> Schedule:
    known = {field.name for field in fields(Schedule)}
    values = {key: value for key, value in item.items() if key in known}
    return Schedule(**{**values, "sigmas": tuple(float(sigma) for sigma in values["sigmas"])})
