"""Giving memory back."""

from __future__ import annotations

import gc

import torch


def free_memory() -> None:
    """Let go of models that nobody holds any more: hooks tie their parts into circles that only a collection undoes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
