"""CLIP's vision model in single files: its sizes, and where each of its weights is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UserError
from .class_config import bundled_config
from .weights import Shapes

PREFIX = "vision_model."  # of transformers 4's names; transformers 5 names them without
LAYERS = "encoder.layers."


def vision_sizes(shapes: Shapes, published: str, whose: str) -> dict[str, Any]:
    """The arguments of a `CLIPVisionConfig`, from the shapes of its tensors, named without their prefix.

    Args:
        published: the config in `configs/` that the rest, and the width of a head, are of.
        whose: the model in words, for messages.

    Raises:
        UserError: it is no CLIP vision model of this kind.
    """
    usual = bundled_config(published)
    usual = usual.get("vision_config", usual)
    head = usual["hidden_size"] // usual["num_attention_heads"]
    patches = shapes.get("embeddings.patch_embedding.weight")
    if patches is None or patches[0] % head:
        raise UserError(f"it is not {whose}; name the model's own")
    width, _, patch, _ = patches
    side = round((shapes["embeddings.position_embedding.weight"][0] - 1) ** 0.5)
    return {
        **usual,
        "hidden_size": width,
        "num_attention_heads": width // head,
        "intermediate_size": shapes[f"{LAYERS}0.mlp.fc1.weight"][0],
        "num_hidden_layers": 1 + max(int(n.split(".")[2]) for n in shapes if n.startswith(LAYERS)),
        "patch_size": patch,
        "image_size": side * patch,
    }


def vision_names(wanted: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """Where each parameter is: the class's name -> the file's, of the file's names without their prefix."""
    return {name: own[name.removeprefix(PREFIX)] for name in wanted if name.removeprefix(PREFIX) in own}
