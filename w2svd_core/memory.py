"""What a process takes of the GPU, and giving it back."""

from __future__ import annotations

import gc

import torch


def gpu_peak() -> dict[str, float]:
    """ "gpu_gib", the most GiB of the GPU that this process has held so far; {} without a GPU."""
    return {"gpu_gib": torch.cuda.max_memory_reserved() / 2**30} if torch.cuda.is_available() else {}


def free_memory() -> None:
    """Let go of models that nobody holds any more: hooks tie their parts into circles that only a collection undoes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
