"""HunyuanVideo 1.5's second text: the words that a prompt puts in quotes, which a clip is to show, letter by letter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .class_config import bundled_config
from .padded_text import filled
from .tokenizing import check_vocabulary, words_hash
from .told_by_shapes import t5_sizes
from .weights import Header, Shapes, class_in, from_file, from_folder, frozen, hollow, sampled_hash

CLASSES = ("T5EncoderModel", "T5Model", "T5ForConditionalGeneration")
TOKENS = 256
PUBLISHED = "byt5-small-glyph"
SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"  # one table under two names
BLOCK = "encoder.block.0.layer"
_QUOTED = re.compile(r'"(.*?)"|“(.*?)”')


class Glyphs:
    """ByT5's hidden states of the words in quotes, as diffusers' HunyuanVideo 1.5 pipelines make them.

    Args:
        model: a `T5EncoderModel`; it is frozen here.
        tokenizer: its tokenizer, with the words for colours and fonts that were added to it.

    Raises:
        UserError: the tokenizer is another.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device | None = None) -> None:
        check_vocabulary(tokenizer, model.config.vocab_size, "model.tokenizer_2")
        self.model: Any = frozen(model, device or torch.device("cpu"))
        self.tokenizer = tokenizer
        self.width = int(model.config.d_model)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`glyphs` (B, 256, width), zero after the last letter, and `glyphs_mask` (B, 256), 1 up to it; on the CPU.

        A prompt without quotes has zeros in both.
        """
        empty = self._none(0)
        rows = zip(empty, *(self._encode(quoted(prompt)) for prompt in prompts), strict=True)
        glyphs, mask = (torch.cat(some) for some in rows)
        return {"glyphs": glyphs, "glyphs_mask": mask}

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        """Alone and without padding, which is masked out."""
        if not text:
            return self._none(1)
        words = self.tokenizer(text, max_length=TOKENS, truncation=True, return_tensors="pt")
        ids, mask = words.input_ids.to(self.model.device), words.attention_mask.to(self.model.device)
        return filled(self.model(input_ids=ids, attention_mask=mask.float())[0], mask, TOKENS)

    def _none(self, rows: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(rows, TOKENS, self.width, dtype=self.model.dtype), torch.zeros(rows, TOKENS)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return sampled_hash(self.model.state_dict(), ["glyphs", words_hash(self.tokenizer), TOKENS])


def quoted(prompt: str) -> str:
    """What ByT5 reads of a prompt: each text in quotes once, in the words that it was trained with; "" for none."""
    texts = dict.fromkeys(straight or curly for straight, curly in _QUOTED.findall(prompt))
    return ". ".join(f'Text "{text}"' for text in texts) + ". " if texts else ""


def load_byt5(place: Path, dtype: torch.dtype) -> nn.Module:
    """A `T5EncoderModel` from a folder, or from one file with transformers' names (ComfyUI's byt5_small_glyphxl).

    Raises:
        UserError: broken, scaled, or another text encoder.
    """
    from transformers import T5EncoderModel

    what = "ByT5 text encoder"
    model: nn.Module
    if place.is_dir():
        if class_in(place) not in CLASSES:
            raise UserError(f"{place} is not a folder of a {CLASSES[0]}; check model.text_encoder_2")
        model = from_folder(T5EncoderModel.from_pretrained, place, what, dtype=dtype)
    else:
        model = from_file(place, what, _plan, lambda name: dtype)
        model.tie_weights()  # type: ignore[operator]
    return model


def _plan(shapes: Shapes, header: Header) -> tuple[nn.Module, Mapping[str, str]]:
    from transformers import T5Config, T5EncoderModel

    own = {name: name for name in shapes if not name.startswith(("decoder.", "lm_head."))}
    table = own.get(SHARED, own.get(TIED))
    if table is None or f"{BLOCK}.1.DenseReluDense.wi_1.weight" not in own:
        raise UserError("it is not a ByT5 text encoder; name the one that belongs to the model (byt5-small, Glyph)")
    config = T5Config(**byt5_sizes(shapes, table))
    return hollow(lambda: T5EncoderModel(config)), {**own, SHARED: table, TIED: table}


def byt5_sizes(shapes: Shapes, table: str) -> dict[str, Any]:
    """The arguments of a `T5Config`, from the shapes of its tensors; the rest as published (byt5-small).

    Args:
        table: the file's name of the letters' table.
    """
    return {**bundled_config(PUBLISHED), **t5_sizes(shapes, table)}
