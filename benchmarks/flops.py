"""FLOPs of what really ran: torch's counter, taught the attention that it misses on the CPU and on meta.

A multiply-add is two FLOPs. Matrix products, convolutions and attention are counted; norms, activations and
the optimizer are not. What a checkpointed block computes again is counted again, because it runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
Shape = Sequence[int]  # (batch, heads, tokens, width)


def attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Two products, q k^T and p v: 4 b h s_q s_k d where all widths are d."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])


def attention_backward(_grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Five products, 2.5 forwards: q k^T again, as a fused kernel does not keep it, then dv, dp, dq and dk."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (3 * width + 2 * value[3])


# torch's own counter knows the fused kernels of CUDA alone
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    aten._scaled_dot_product_fused_attention_overrideable: attention,
    aten._scaled_dot_product_fused_attention_overrideable_backward: attention_backward,
}

_sdpa = torch.nn.functional.scaled_dot_product_attention


def _fused_on_meta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as a fused kernel on the meta device too, where torch takes the unfused one.

    The unfused backward costs 2 forwards, because it keeps the scores. At 32,760 tokens nobody can keep them: a
    training run takes a fused kernel, and that is what is to be counted.
    """
    if not query.is_meta or enable_gqa:
        out: Tensor = _sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        return out
    fused = aten._scaled_dot_product_flash_attention_for_cpu
    found: Tensor = fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return found


class _NumbersFromNowhere(TorchDispatchMode):
    """Reads any number off a meta tensor as 1, so that `float(loss)` and the non-finite guard run unchanged."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count what runs inside; on meta tensors too."""
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    patch = mock.patch("torch.nn.functional.scaled_dot_product_attention", _fused_on_meta)
    nowhere = _NumbersFromNowhere()  # type: ignore[no-untyped-call]  # torch gives its mode no types
    with patch, nowhere, counter:
        yield counter


def flops(run: Callable[[], object]) -> int:
    """FLOPs of one call."""
    with counting() as counter:
        run()
    return int(counter.get_total_flops())
