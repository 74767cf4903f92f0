"""Between captions and embeddings: the interface of a text encoder, and the stand-in for the portraits.

The stand-in knows no language. Every word gets a fixed pseudo-random vector, drawn from its SHA-256, beside that of the
word before it; a caption is the sequence of its words, zero-padded, as Wan pads the embeddings of UMT5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..condition import Condition
from ..hashing import value_hash
from ..randomness import generator


class PromptEncoder(Protocol):
    """What training and sampling need of a text encoder."""

    width: int

    def encode(self, prompts: Sequence[str]) -> Condition:
        """B rows of the fields that the family's models take.

        The empty prompt is what guidance leads away from, unless an encoder has a `null` of its own.
        """
        ...

    def fingerprint(self) -> str:
        """Changes when the embeddings of the same prompt would."""
        ...


class HashedWords:
    """The bundled prompt encoder: at most 24 words of 64 numbers each, of about unit size, as `text` (B, 24, 64)."""

    width = 64
    tokens = 24
    _own = 40  # numbers that stand for the word itself; the rest stand for the word before it

    def encode(self, prompts: Sequence[str]) -> Condition:
        out = torch.zeros(len(prompts), self.tokens, self.width)
        for row, prompt in enumerate(prompts):
            words = ["<s>", *re.findall(r"[a-z0-9]+", prompt.lower()), "</s>"][: self.tokens]
            for place, word in enumerate(words):
                out[row, place, : self._own] = _vector(word, self._own)
                out[row, place, self._own :] = _vector(words[place - 1] if place else "", self.width - self._own)
        return Condition({"text": out})

    def fingerprint(self) -> str:
        return value_hash(["hashed words", self.width, self.tokens, self._own])


def _vector(word: str, width: int) -> Tensor:
    return torch.randn(width, generator=generator(0, "word", word, width))
