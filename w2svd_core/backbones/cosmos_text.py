"""Cosmos' text encoder: Cosmos-Reason1, a Qwen2.5-VL, read at every layer, and the model's own projection after it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import UserError
from ..hashing import value_hash
from .cosmos_class import Projection
from .tokenizing import check_vocabulary, words_hash
from .weights import class_in, from_folder, frozen, sampled_hash

CLASS = "Qwen2_5_VLForConditionalGeneration"
TOKENS = 512
SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."  # as the published pipeline says
FLOOR = 1e-8  # under the deviation of a token's channels


class CosmosReason:
    """Prompt embeddings as diffusers' `Cosmos2_5_PredictBasePipeline` makes them, and the transformer's projection.

    The pipeline takes what every layer makes of every token (28 layers of 3,584 channels), and the transformer projects
    that to 1,024 channels before anything else. It is done here once, so that a prompt takes 1 MB, not 103. Padding has
    its own embedding and no mask: the model was trained to read it.

    Args:
        model: a `Qwen2_5_VLForConditionalGeneration`, of which only the language model is kept; it is frozen here.
        tokenizer: its tokenizer, with its chat template.
        projection: of the transformer; None for one that takes the layers as they are.
        negative_prompt: whose embedding is the null condition of guidance.
        tokens: a prompt's length, in the embedding too.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        projection: Projection | None,
        negative_prompt: str = "",
        device: torch.device | None = None,
        tokens: int = TOKENS,
    ) -> None:
        language, place = model.model.language_model, device or torch.device("cpu")
        check_vocabulary(tokenizer, language.config.vocab_size, "model.tokenizer")
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the tokenizer has no chat template, in which Cosmos wraps its prompts; copy the model's whole "
                "tokenizer folder and name it in model.tokenizer"
            )
        width = language.config.num_hidden_layers * language.config.hidden_size
        taken = width if projection is None else projection[0].in_features
        if width != taken:
            raise UserError(
                f"the model takes {taken} channels of a prompt's token, the text encoder makes {width}; name the "
                "model's own in model.text_encoder"
            )
        self.model: Any = frozen(language, place)
        self.projection = None if projection is None else frozen(projection.to(self.model.dtype), place)
        self.tokenizer = tokenizer
        self.negative_prompt = negative_prompt
        self.tokens = tokens
        self.width: int = width if projection is None else projection[0].out_features  # type: ignore[assignment]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """`text` (B, tokens, width), in the encoder's precision, on the CPU."""
        none = torch.zeros(0, self.tokens, self.width, dtype=self.model.dtype)
        return Condition({"text": torch.cat([none, *(self._encode(prompt) for prompt in prompts)])})

    def _encode(self, prompt: str) -> Tensor:
        """One at a time: what the layers make is large."""
        layers = self.model(self._ids(prompt), output_hidden_states=True).hidden_states[1:]
        text = torch.cat([_normalised(layer) for layer in layers], dim=-1)
        found: Tensor = text if self.projection is None else self.projection(text)
        return found.cpu()

    def _ids(self, prompt: str) -> Tensor:
        said = {"system": SYSTEM, "user": prompt}
        chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said.items()]
        found = self.tokenizer.apply_chat_template(
            chat,
            tokenize=True,
            add_generation_prompt=False,
            add_vision_id=False,
            max_length=self.tokens,
            truncation=True,
            padding="max_length",
            return_dict=True,
        )
        return torch.tensor([found["input_ids"]], device=self.model.device)

    def null(self) -> Condition:
        """What guidance leads away from, one row."""
        return self.encode([self.negative_prompt])

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        words = value_hash([words_hash(self.tokenizer), self.tokenizer.chat_template])
        projected = {} if self.projection is None else self.projection.state_dict()
        weights = {**self.model.state_dict(), **{f"projection.{name}": w for name, w in projected.items()}}
        return sampled_hash(weights, ["text", words, self.tokens, self.negative_prompt])


def load_text_encoder(place: Path, dtype: torch.dtype) -> nn.Module:
    """A `Qwen2_5_VLForConditionalGeneration` from a folder.

    Raises:
        UserError: a file, broken, or another text encoder.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    if not place.is_dir() or class_in(place) != CLASS:
        raise UserError(
            f"{place} is not a folder of a {CLASS}; name the folder of Cosmos-Reason1 that belongs to the model in "
            "model.text_encoder"
        )
    model: nn.Module = from_folder(
        Qwen2_5_VLForConditionalGeneration.from_pretrained, place, "Qwen2.5-VL text encoder", dtype=dtype
    )
    return model


def _normalised(layer: Tensor) -> Tensor:
    """A layer's `b n d` with mean 0 and deviation 1 over each token's channels."""
    return (layer - layer.mean(dim=-1, keepdim=True)) / (layer.std(dim=-1, keepdim=True) + FLOOR)
