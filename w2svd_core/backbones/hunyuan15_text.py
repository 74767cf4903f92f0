"""HunyuanVideo 1.5's prompts: what Qwen2.5-VL makes of them inside a chat, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..condition import Condition
from ..errors import UserError
from ..hashing import value_hash
from .class_config import bundled_config
from .hunyuan15_glyphs import Glyphs
from .padded_text import filled
from .tokenizing import check_vocabulary, words_hash
from .told_by_shapes import decoder_sizes
from .weights import Header, Shapes, class_in, from_file, from_folder, frozen, hollow, sampled_hash

TOKENS = 1000  # of a prompt, without what stands before it
BEFORE = 108  # tokens of the chat before the prompt
LAYER = -3  # of the hidden states: what the last layer but two makes
HEAD_DIM = 128  # of Qwen2.5; no tensor's shape tells it
PUBLISHED = "qwen2.5-vl-7b-text"
ALONE, WHOLE = "Qwen2_5_VLTextModel", ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel")
_ASPECTS = (  # as the published pipelines say it, white space and all
    "You are a helpful assistant. Describe the video by detailing the following aspects:",
    "1. The main content and theme of the video.",
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.",
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.",
    "4. background environment, light, style and atmosphere.",
    "5. camera angles, movements, and transitions used in the video.",
)
SYSTEM = (" " * 9).join(_ASPECTS)
EMPTY = " "  # what stands for an empty prompt
OTHERS = ("visual.", "model.visual.", "lm_head.", "tokenizer")  # what a whole model's file holds, too
PREFIXES = ("model.language_model.", "language_model.", "model.")


class Qwen:
    """Qwen2.5-VL's hidden states of prompts, as diffusers' HunyuanVideo 1.5 pipelines make them.

    Args:
        model: a `Qwen2_5_VLTextModel`; it is frozen here.
        tokenizer: its tokenizer, with its chat template.

    Raises:
        UserError: the tokenizer is another.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device | None = None) -> None:
        check_vocabulary(tokenizer, model.config.vocab_size, "model.tokenizer")
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the tokenizer has no chat template, in which HunyuanVideo 1.5 wraps its prompts; copy the model's "
                "whole tokenizer folder and name it in model.tokenizer"
            )
        self.tokenizer = tokenizer
        pairs = enumerate(zip(self._ids("a"), self._ids("b"), strict=False))
        before = next((place for place, (one, other) in pairs if one != other), 0)
        if before != BEFORE:
            raise UserError(
                f"the tokenizer makes {before} tokens of what stands before a prompt, and HunyuanVideo 1.5's makes "
                f"{BEFORE}; name the text encoder's own tokenizer (Qwen2.5-VL) in model.tokenizer"
            )
        self.model: Any = frozen(model, device or torch.device("cpu"))
        self.width = int(model.config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`text` (B, 1000, width), zero after the last token, and `text_mask` (B, 1000), 1 up to it; on the CPU."""
        empty = torch.zeros(0, TOKENS, self.width, dtype=self.model.dtype), torch.zeros(0, TOKENS)
        rows = zip(empty, *(self._encode(prompt) for prompt in prompts), strict=True)
        text, mask = (torch.cat(some) for some in rows)
        return {"text": text, "text_mask": mask}

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Alone: padding has no say in the rest, since Qwen looks back alone, so there is none."""
        ids = torch.tensor([self._ids(prompt)], device=self.model.device)
        hidden = self.model(input_ids=ids, output_hidden_states=True).hidden_states[LAYER][:, BEFORE:]
        return filled(hidden, hidden.new_ones(hidden.shape[:2]), TOKENS)

    def _ids(self, prompt: str) -> list[int]:
        chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt or EMPTY}]
        found: list[int] = self.tokenizer.apply_chat_template(
            chat,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            max_length=TOKENS + BEFORE,
            truncation=True,
        )["input_ids"]
        return found

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        words = value_hash([words_hash(self.tokenizer), self.tokenizer.chat_template])
        return sampled_hash(self.model.state_dict(), ["qwen", words, SYSTEM, TOKENS, LAYER])


class TwoTexts:
    """The prompt encoder: `text` and `text_mask`, `glyphs` and `glyphs_mask`."""

    def __init__(self, qwen: Qwen, glyphs: Glyphs) -> None:
        self.qwen, self.glyphs = qwen, glyphs
        self.width = qwen.width

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The fields that Qwen makes, and ByT5's of the words in quotes; on the CPU."""
        return Condition({**self.qwen.encode(prompts), **self.glyphs.encode(prompts)})

    def fingerprint(self) -> str:
        return value_hash([self.qwen.fingerprint(), self.glyphs.fingerprint()])


def load_qwen(place: Path, dtype: torch.dtype) -> nn.Module:
    """A `Qwen2_5_VLTextModel` from a folder, or from one file with transformers' names (ComfyUI's qwen_2.5_vl_7b).

    Raises:
        UserError: broken, scaled, or another text encoder.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLTextModel

    what = "Qwen2.5-VL text encoder"
    model: nn.Module
    if place.is_file():
        model = from_file(place, what, _plan, lambda name: dtype)
    elif (named := class_in(place)) in WHOLE:
        model = from_folder(Qwen2_5_VLForConditionalGeneration.from_pretrained, place, what, dtype=dtype)
        model = model.model.language_model  # type: ignore[assignment, union-attr]
    elif named == ALONE:
        model = from_folder(Qwen2_5_VLTextModel.from_pretrained, place, what, dtype=dtype)
    else:
        raise UserError(f"{place} is not a folder of a {ALONE}; check model.text_encoder")
    return model


def _plan(shapes: Shapes, header: Header) -> tuple[nn.Module, dict[str, str]]:
    from transformers import Qwen2_5_VLTextModel
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

    own = qwen_names(shapes)
    config = Qwen2_5_VLTextConfig(**qwen_sizes({name: shapes[key] for name, key in own.items()}))
    return hollow(lambda: Qwen2_5_VLTextModel(config)), own


def qwen_names(names: Mapping[str, Any] | Sequence[str]) -> dict[str, str]:
    """Where a file keeps what: `Qwen2_5_VLTextModel`'s name of each parameter -> the file's own name.

    Raises:
        UserError: it is no Qwen2.5.
    """
    inside = [name for name in names if not name.startswith(OTHERS)]
    own = {name[len(next((p for p in PREFIXES if name.startswith(p)), "")) :]: name for name in inside}
    if "layers.0.self_attn.q_proj.bias" not in own or "layers.0.mlp.gate_proj.weight" not in own:
        raise UserError("it is not a Qwen2.5-VL text encoder; name the one that belongs to the model (7B)")
    return own


def qwen_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The arguments of a `Qwen2_5_VLTextConfig`, from the shapes of its tensors; the rest as published (7B).

    Raises:
        UserError: its heads are of another width.
    """
    sizes = decoder_sizes(shapes, HEAD_DIM)
    width, heads, keys = (sizes[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if not keys or heads % keys or width != heads * HEAD_DIM:
        raise UserError("it is not a Qwen2.5-VL of 7B; name the model's own text encoder")
    return {**bundled_config(PUBLISHED), **sizes}
