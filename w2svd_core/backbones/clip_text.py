"""CLIP's text encoder: all tokens of its last layer, or what it says of a whole prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import UserError
from .class_config import bundled_config
from .tokenizing import check_vocabulary, words_hash
from .weights import Header, Shapes, class_in, from_file, from_folder, frozen, hollow, sampled_hash, strip

CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel")
BATCH = 8  # prompts at a time
HEAD_DIM = 64  # of every CLIP text model; no tensor's shape tells it
LAYERS = "encoder.layers."
Field = Literal["text", "pooled"]


class ClipText:
    """Prompt embeddings of CLIP, padding included.

    Args:
        model: a `CLIPTextModel`; it is frozen here.
        tokenizer: its tokenizer.
        field: `text` (B, tokens, width) is its last layer, `pooled` (B, width) the last layer at the prompt's end.
        setting: that names the tokenizer, for messages.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: torch.device | None = None,
        field: Field = "text",
        setting: str = "model.tokenizer",
    ) -> None:
        check_vocabulary(tokenizer, model.config.vocab_size, setting)
        self.model: Any = frozen(model, device or torch.device("cpu"))
        self.tokenizer = tokenizer
        self.field = field
        self.width = int(model.config.hidden_size)
        self.tokens = int(model.config.max_position_embeddings)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """The one field, in the encoder's precision, on the CPU."""
        parts = [self._encode(prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
        size = (0, self.width) if self.field == "pooled" else (0, self.tokens, self.width)
        return Condition({self.field: torch.cat([torch.zeros(size, dtype=self.model.dtype), *parts])})

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        words = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        made = self.model(words.input_ids.to(self.model.device))
        found: Tensor = made.pooler_output if self.field == "pooled" else made.last_hidden_state
        return found.cpu()

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        words = words_hash(self.tokenizer)
        name = "clip text" if self.field == "text" else f"clip {self.field}"
        return sampled_hash(self.model.state_dict(), [name, words, self.tokens])


def load_clip_text(place: Path, dtype: torch.dtype, setting: str) -> nn.Module:
    """A `CLIPTextModel` from a folder, or from one file with transformers' names (ComfyUI's clip_l).

    Args:
        setting: that names it, for messages.

    Raises:
        UserError: broken, scaled, or another text encoder.
    """
    from transformers import CLIPTextModel

    model: nn.Module
    if place.is_dir():
        if class_in(place) not in CLASSES:
            raise UserError(f"{place} is not a folder of a {CLASSES[0]}; check {setting}")
        model = from_folder(CLIPTextModel.from_pretrained, place, "CLIP text encoder", dtype=dtype)
    else:
        model = from_file(place, "CLIP text encoder", _plan, lambda name: dtype)
    return model


def _plan(shapes: Shapes, header: Header) -> tuple[nn.Module, dict[str, str]]:
    from transformers import CLIPTextConfig, CLIPTextModel

    prefix = "text_model."  # of transformers 4; transformers 5 names them without
    own = strip(shapes, (prefix,))
    config = CLIPTextConfig(**clip_sizes({name: shapes[key] for name, key in own.items()}))
    model = hollow(lambda: CLIPTextModel(config))
    found = {name: own[name.removeprefix(prefix)] for name in model.state_dict() if name.removeprefix(prefix) in own}
    return model, found


def clip_sizes(shapes: Shapes) -> dict[str, Any]:
    """The arguments of a `CLIPTextConfig`, from the shapes of its tensors; the rest as published (ViT-L/14).

    Raises:
        UserError: it is no CLIP text model.
    """
    words, places = (shapes.get(f"embeddings.{name}_embedding.weight") for name in ("token", "position"))
    if words is None or places is None or words[1] % HEAD_DIM:
        raise UserError(
            "it is not a CLIP text encoder; name the one that belongs to the model (clip-vit-large-patch14)"
        )
    vocabulary, width = words
    return {
        **bundled_config("clip-text-l"),
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": width // HEAD_DIM,
        "intermediate_size": shapes[f"{LAYERS}0.mlp.fc1.weight"][0],
        "num_hidden_layers": 1 + max(int(n.split(".")[2]) for n in shapes if n.startswith(LAYERS)),
        "max_position_embeddings": places[0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }
