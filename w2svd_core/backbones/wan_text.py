"""Wan's text encoder: UMT5 with its tokenizer, prompts of at most 512 tokens, zeros after the last."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..condition import Condition
from ..errors import UserError
from .class_config import bundled_config
from .tokenizing import check_vocabulary, words_hash
from .told_by_shapes import t5_sizes
from .weights import Header, Shapes, class_in, from_file, from_folder, frozen, hollow, sampled_hash

CLASS = "UMT5EncoderModel"
TOKENS = 512
BATCH = 8  # prompts at a time
SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"  # one table under two names
WIDE = "wo"  # the layer that transformers keeps in float32 beside float16
NOT_WEIGHTS = ("spiece_model",)  # ComfyUI's files carry the tokenizer along

# Wan's own names of a block's parts (t5.py) -> transformers'
_BLOCK = {
    **{f"attn.{x}": f"layer.0.SelfAttention.{x}" for x in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
    "norm2": "layer.1.layer_norm",
}
_TOP = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.weight")


class Umt5:
    """Prompt embeddings as diffusers' Wan pipelines make them.

    Args:
        model: a `UMT5EncoderModel`; it is frozen here.
        tokenizer: its tokenizer.
        negative_prompt: whose embedding is the null condition of guidance.
        tokens: a prompt's length, in the embedding too.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        negative_prompt: str = "",
        device: torch.device | None = None,
        tokens: int = TOKENS,
    ) -> None:
        check_vocabulary(tokenizer, model.config.vocab_size, "model.tokenizer")
        self.model: Any = frozen(model, device or torch.device("cpu"))
        self.tokenizer = tokenizer
        self.negative_prompt = negative_prompt
        self.tokens = tokens
        self.width = int(model.config.d_model)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """`text` (B, tokens, width), in the encoder's precision, on the CPU; zeros after a prompt's last token."""
        parts = [self._encode(prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
        return Condition({"text": torch.cat([torch.zeros(0, self.tokens, self.width, dtype=self.model.dtype), *parts])})

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        words = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="longest",  # what lies behind the mask has no say in the rest, so it is not computed
            max_length=self.tokens,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = words.attention_mask.to(self.model.device)
        hidden: Tensor = self.model(words.input_ids.to(self.model.device), mask).last_hidden_state
        hidden = hidden * mask[..., None].to(hidden.dtype)
        return pad(hidden, (0, 0, 0, self.tokens - hidden.shape[1])).cpu()

    def null(self) -> Condition:
        """What guidance leads away from, one row."""
        return self.encode([self.negative_prompt])

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        words = words_hash(self.tokenizer)
        return sampled_hash(self.model.state_dict(), ["text", words, self.tokens, self.negative_prompt])


def clean(prompt: str) -> str:
    """A prompt as Wan cleans it: broken letters mended, HTML entities resolved, white space single.

    Raises:
        UserError: it holds letters that ftfy may change, and ftfy is not installed.
    """
    text = html.unescape(html.unescape(_mended(prompt)))
    return re.sub(r"\s+", " ", text).strip()


def _mended(prompt: str) -> str:
    try:
        import ftfy
    except ImportError as error:
        if prompt.isascii():
            return prompt
        raise UserError(
            f"the prompt {prompt[:40]!r} is not plain ASCII, and Wan was trained on prompts that ftfy had cleaned; "
            "install it with pip install ftfy"
        ) from error
    return str(ftfy.fix_text(prompt))


def load_text_encoder(place: Path, dtype: torch.dtype) -> nn.Module:
    """A `UMT5EncoderModel` from a folder, or from one file with transformers' or Wan's own names.

    Raises:
        UserError: broken, scaled, or another text encoder.
    """
    from transformers import UMT5EncoderModel

    model: nn.Module
    if place.is_dir():
        if class_in(place) not in (CLASS, "UMT5ForConditionalGeneration", "UMT5Model"):
            raise UserError(f"{place} is not a folder of a {CLASS}; check model.text_encoder")
        model = from_folder(UMT5EncoderModel.from_pretrained, place, "UMT5 text encoder", dtype=dtype)
    else:
        model = from_file(place, "UMT5 text encoder", _plan, lambda name: _dtype_of(name, dtype))
        model.tie_weights()  # type: ignore[operator]
    return model


def _plan(shapes: Shapes, header: Header) -> tuple[nn.Module, dict[str, str]]:
    from transformers import UMT5Config, UMT5EncoderModel

    own = transformers_names([name for name in shapes if name not in NOT_WEIGHTS])
    config = UMT5Config(**umt5_sizes({name: shapes[key] for name, key in own.items()}))
    return hollow(lambda: UMT5EncoderModel(config)), own


def transformers_names(names: Sequence[str]) -> dict[str, str]:
    """Where a file keeps what: transformers' name of each parameter -> the file's own name.

    Raises:
        UserError: it is no UMT5 encoder.
    """
    own = {_transformers_name(name): name for name in names if not name.startswith(("decoder.", "lm_head."))}
    table = own.get(SHARED, own.get(TIED))
    if table is None or "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" not in own:
        raise UserError("it is not a UMT5 text encoder; name the one that belongs to the model (umt5-xxl)")
    return {**own, SHARED: table, TIED: table}


def _transformers_name(name: str) -> str:
    inside = _IN_BLOCK.fullmatch(name)
    if inside is not None and inside[2] in _BLOCK:
        return f"encoder.block.{inside[1]}.{_BLOCK[inside[2]]}.weight"
    module, _, leaf = name.rpartition(".")
    return f"{_TOP[module]}.{leaf}" if module in _TOP else name


def umt5_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The arguments of a `UMT5Config`, from the shapes of its tensors; the rest as published (umt5-xxl)."""
    return {**bundled_config("umt5-xxl"), **t5_sizes(shapes, SHARED)}


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float16 and WIDE in name.split(".") else dtype
