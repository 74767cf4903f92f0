"""HunyuanVideo's prompts: what LLaMA makes of them inside a template, token by token, and CLIP's word on the whole."""

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
from .clip_text import ClipText
from .padded_text import filled
from .tokenizing import check_vocabulary, words_hash
from .told_by_shapes import decoder_sizes
from .weights import Header, Shapes, class_in, from_file, from_folder, frozen, hollow, sampled_hash

TOKENS = 256  # of a prompt, without the template
LAYER = -3  # of the hidden states: what the last layer but two makes
BATCH = 8  # prompts at a time
HEAD_DIM = 128  # of LLaMA 3; no tensor's shape tells it
CLASSES = ("LlamaModel", "LlamaForCausalLM")
NOT_WEIGHTS = ("tokenizer",)  # ComfyUI's files may carry it along
# the templates that HunyuanVideo was trained with (prompt templates of Tencent's HunyuanVideo and HunyuanVideo-I2V)
_ASPECTS = (
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
)
_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"
_USER = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
_DESCRIBE = "Describe the video by detailing the following aspects"
TEMPLATE = f"{_SYSTEM}{_DESCRIBE}: {_ASPECTS}{_USER}"
TEMPLATE_TOKENS = 95  # before the prompt
PICTURE_TEMPLATE = (
    f"{_SYSTEM}<image>\n{_DESCRIBE} according to the reference image: {_ASPECTS}\n\n{_USER}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
PICTURE_TEMPLATE_TOKENS = 103


class Llama:
    """LLaMA's hidden states of prompts, as diffusers' HunyuanVideo pipelines make them.

    Args:
        model: a `LlamaModel`; it is frozen here.
        tokenizer: its tokenizer.

    Raises:
        UserError: the tokenizer is another.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device | None = None) -> None:
        check_tokenizer(tokenizer, model.config.vocab_size, TEMPLATE, TEMPLATE_TOKENS)
        self.model: Any = frozen(model, device or torch.device("cpu"))
        self.tokenizer = tokenizer
        self.width = int(model.config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`text` (B, 256, width), zero after the last token, and `text_mask` (B, 256), 1 up to it; on the CPU."""
        parts = [self._encode(prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
        empty = torch.zeros(0, TOKENS, self.width, dtype=self.model.dtype), torch.zeros(0, TOKENS)
        text, mask = (torch.cat(some) for some in zip(empty, *parts, strict=True))
        return {"text": text, "text_mask": mask}

    def _encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, given = tokenized(self.tokenizer, TEMPLATE, prompts, TEMPLATE_TOKENS)
        seen = given.to(self.model.device)
        hidden = self.model(ids.to(self.model.device), attention_mask=seen, output_hidden_states=True).hidden_states
        return filled(hidden[LAYER][:, TEMPLATE_TOKENS:], seen[:, TEMPLATE_TOKENS:], TOKENS)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        words = words_hash(self.tokenizer)
        return sampled_hash(self.model.state_dict(), ["llama", words, TEMPLATE, TOKENS, LAYER])


class TextPrompts:
    """The prompt encoder of text-to-video: `text`, `text_mask` and `pooled`."""

    def __init__(self, llama: Llama, clip: ClipText) -> None:
        self.llama, self.clip = llama, clip
        self.width = llama.width

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The fields that LLaMA makes, and CLIP's `pooled` (B, width of its own); on the CPU."""
        return Condition({**self.llama.encode(prompts), **self.clip.encode(prompts).fields})

    def fingerprint(self) -> str:
        return value_hash([self.llama.fingerprint(), self.clip.fingerprint()])


def tokenized(tokenizer: Any, template: str, prompts: Sequence[str], start: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, at most 256 + start) of prompts in a template, padded at their ends to the longest.

    What lies behind the mask has no say in the rest, since LLaMA looks back alone, so it is not computed.
    """
    words = tokenizer(
        [template.format(prompt) for prompt in prompts],
        padding="longest",
        padding_side="right",
        max_length=TOKENS + start,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return words.input_ids, words.attention_mask


def check_tokenizer(tokenizer: Any, vocabulary: int, template: str, start: int) -> list[int]:
    """Whether a tokenizer is the one that the template was cut with; returns its ids of what stands before the prompt.

    Raises:
        UserError: it is another.
    """
    check_vocabulary(tokenizer, vocabulary, "model.tokenizer")
    before: list[int] = tokenizer(template.split("{}")[0]).input_ids
    if len(before) != start:
        raise UserError(
            f"the tokenizer makes {len(before)} tokens of HunyuanVideo's template, which has {start}; name the text "
            "encoder's own tokenizer (LLaMA 3 with LLaVA's words) in model.tokenizer"
        )
    return before


def load_llama(place: Path, dtype: torch.dtype) -> nn.Module:
    """A `LlamaModel` from a folder, or from one file with transformers' names (ComfyUI's llava_llama3).

    Raises:
        UserError: broken, scaled, or another text encoder.
    """
    from transformers import LlamaModel

    model: nn.Module
    if place.is_dir():
        if class_in(place) not in CLASSES:
            raise UserError(f"{place} is not a folder of a {CLASSES[0]}; check model.text_encoder")
        model = from_folder(LlamaModel.from_pretrained, place, "LLaMA text encoder", dtype=dtype)
    else:
        model = from_file(place, "LLaMA text encoder", _plan, lambda name: dtype)
    return model


def _plan(shapes: Shapes, header: Header) -> tuple[nn.Module, dict[str, str]]:
    from transformers import LlamaConfig, LlamaModel

    own = llama_names(shapes)
    config = LlamaConfig(**llama_sizes({name: shapes[key] for name, key in own.items()}))
    return hollow(lambda: LlamaModel(config)), own


def llama_names(names: Mapping[str, Any] | Sequence[str]) -> dict[str, str]:
    """Where a file keeps what: `LlamaModel`'s name of each parameter -> the file's own name.

    Raises:
        UserError: it is no LLaMA.
    """
    inside = [name for name in names if name not in NOT_WEIGHTS and not name.startswith("lm_head.")]
    own = {name.removeprefix("model."): name for name in inside}
    if "layers.0.mlp.gate_proj.weight" not in own or "layers.0.self_attn.q_proj.bias" in own:
        raise UserError("it is not a LLaMA text encoder; name the one that belongs to the model (llava-llama-3-8b)")
    return own


def llama_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The arguments of a `LlamaConfig`, from the shapes of its tensors; the rest as published (LLaMA 3, 8B).

    Raises:
        UserError: its heads are of another width.
    """
    sizes = decoder_sizes(shapes, HEAD_DIM)
    width, heads, keys = (sizes[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if not keys or heads % keys or width % heads:
        raise UserError("it is not a LLaMA 3; name the model's own text encoder (llava-llama-3-8b)")
    return {**bundled_config("llava-llama-3-8b")["text_config"], **sizes, "head_dim": HEAD_DIM}
