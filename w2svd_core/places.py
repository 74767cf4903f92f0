"""The settings that name files and folders of the user's, and one way to rewrite them all."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from .errors import UserError
from .settings import Recipe

ENCODERS = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_encoder")  # of `model`
PLACES = {
    "model": ("path", *ENCODERS),
    "student": ("init",),
    "data": ("folder", "prompts", "cache"),
    "frame_matching": ("model",),
    "evaluate": ("fid_network", "fvd_network", "clip_model"),
}
OF_SECTIONS = tuple(f"{section}.{name}" for section, names in PLACES.items() for name in names)
PLACE_KEYS = (*OF_SECTIONS, "model.loras", "first", "start")
WORDS = {  # values that name no place
    "model.path": ("bundled",),
    "data.folder": ("portraits",),
    "frame_matching.model": ("teacher",),
}


def rewritten(recipe: Recipe, change: Callable[[str, str], str]) -> Recipe:
    """The recipe with every place changed.

    Args:
        change: from a setting's key and its place to the new place.
    """
    update: dict[str, object] = {}
    for section, names in PLACES.items():
        own = getattr(recipe, section)
        keys = {name: f"{section}.{name}" for name in names}
        given = {name: getattr(own, name) for name in names}
        named = {name: text for name, text in given.items() if text and text not in WORDS.get(keys[name], ())}
        found: dict[str, object] = {name: change(keys[name], text) for name, text in named.items()}
        if section == "model":
            found["loras"] = tuple(_lora(text, change) for text in own.loras)
        update[section] = own.model_copy(update=found)
    for key in ("first", "start"):
        if place := getattr(recipe, key):
            update[key] = change(key, place)
    return recipe.model_copy(update=update)


def _lora(text: str, change: Callable[[str, str], str]) -> str:
    path, strength = parse_lora(text)
    short = f"{strength:g}"
    return f"{change('model.loras', str(path))}@{short if float(short) == strength else repr(strength)}"


def parse_lora(text: str) -> tuple[Path, float]:
    """File and strength of "path" (strength 1) or "path@strength"; an @ without a number after it is of the path.

    Raises:
        UserError: no path, or a strength that is not finite.
    """
    path, at, last = text.rpartition("@")
    try:
        strength = float(last) if at else 1.0
    except ValueError:
        at, strength = "", 1.0
    path = path if at else text
    if not path.strip():
        raise UserError(f"the LoRA {text!r} names no file; write path or path@strength, such as style.safetensors@0.8")
    if not math.isfinite(strength):
        raise UserError(f"the strength of the LoRA {text!r} is no finite number; write path@0.8, say")
    return Path(path), strength
