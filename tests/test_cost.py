"""What `benchmarks/cost.py` counts is what runs, and it stays under the bars."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from w2svd_core.backbones.base import Architecture

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def cost() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("cost")
        for name in ("cost", "flops"):
            sys.modules.pop(name, None)


@pytest.fixture
def tiny(cost: Any) -> Any:
    model = Architecture(heads=2, head_dim=12, ffn_dim=40, layers=2, text_dim=20)
    return cost.Size(model, (16, 2, 4, 6), tokens=5, rank=3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_as_by_hand(cost: Any, device: str) -> None:
    import torch.nn.functional as F  # the counter swaps the attribute

    b, h, rows, columns, d = 2, 3, 32, 24, 16
    query = torch.ones(b, h, rows, d, device=device, requires_grad=True)
    key, value = (torch.ones(b, h, columns, d, device=device, requires_grad=True) for _ in range(2))
    once = 4 * b * h * rows * columns * d

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    with torch.no_grad():
        assert cost.flops(attend) == once
    assert cost.flops(lambda: attend().sum().backward()) == 3.5 * once  # the backward makes the scores again
    assert F.scaled_dot_product_attention is scaled_dot_product_attention


def test_the_stand_in_on_meta_has_the_shape_of_attention(cost: Any) -> None:
    flops = sys.modules["flops"]
    query, key = torch.empty(2, 3, 32, 16, device="meta"), torch.empty(2, 3, 24, 16, device="meta")
    assert flops._fused_on_meta(query, key, key).shape == (2, 3, 32, 16)


def test_meta_counts_what_the_cpu_executes(cost: Any, tiny: Any) -> None:
    found = []
    for device in ("cpu", "meta"):
        model = cost.shared_model(tiny.deep(1), device, checkpointing=True)
        job = cost.distillation(tiny, model, "visited", updates=1)
        with cost.leaving_at(1):
            found.append(cost.flops(lambda job=job: job.round(0)))
    assert found[0] == found[1] > 0


def test_checkpointing_is_counted_as_run(cost: Any, tiny: Any) -> None:
    x_t, condition = torch.zeros(1, *tiny.latents), tiny.condition(1, "cpu")

    def train_pass(checkpointing: bool) -> int:
        model = cost.shared_model(tiny, checkpointing=checkpointing)
        return cost.flops(lambda: model.predict("fake", x_t, 0.5, condition).sum().backward())

    assert train_pass(True) > 1.2 * train_pass(False)


def test_counts_are_a_line_in_the_depth(cost: Any, tiny: Any) -> None:
    deep = tiny.deep(4)
    assert cost.passes(deep, "cpu", ()) == cost.count_passes(deep, "cpu", ())


@pytest.mark.parametrize("reuse", ["visited", "exit", "fresh"])
def test_a_round_runs_nothing_twice(cost: Any, tiny: Any, reuse: str) -> None:
    single = cost.count_passes(tiny, "cpu", ())
    job = cost.distillation(tiny, cost.shared_model(tiny, checkpointing=True), reuse, updates=2)
    with cost.leaving_at(3):
        found = cost.flops(lambda: job.round(0))
    assert found == by_hand(single, fresh=reuse == "fresh", exit_step=3, updates=2)


def by_hand(single: Any, *, fresh: bool, exit_step: float = 1.5, updates: int = 5) -> float:
    """FLOPs of a round, put together from single passes; 1.5 is the mean of the four exit steps."""
    once = exit_step * single.adapted + (1 + updates) * single.train + 3 * single.adapted
    return once + fresh * updates * (exit_step + 1) * single.adapted


def test_a_14b_round_put_together_from_its_passes_is_under_the_bars(cost: Any) -> None:
    found = cost.passes(cost.WAN_14B, reuses=())
    visited, fresh = by_hand(found, fresh=False), by_hand(found, fresh=True)
    assert visited <= cost.MOST_FORWARDS * found.forward
    assert visited <= cost.MOST_OF_FRESH * fresh


@pytest.mark.slow
def test_executed_14b_rounds_are_under_the_bars(cost: Any) -> None:
    found = cost.passes(cost.WAN_14B, reuses=("visited", "fresh"))
    assert found.rounds["visited"] <= cost.MOST_FORWARDS * found.forward
    assert found.rounds["visited"] <= cost.MOST_OF_FRESH * found.rounds["fresh"]


@pytest.mark.slow
def test_all_40_blocks_cost_what_the_line_says(cost: Any) -> None:
    def a_round(layers: int) -> int:
        size = cost.WAN_14B.deep(layers)
        job = cost.distillation(size, cost.shared_model(size, "meta", checkpointing=True), "visited", updates=1)
        with cost.leaving_at(0):
            return cost.flops(lambda: job.round(0))

    one, two = a_round(1), a_round(2)
    assert a_round(40) == one + 39 * (two - one)


def test_a_role_switch_is_far_cheaper_than_pefts(cost: Any) -> None:
    layers, ours, public = cost.switch_cost(repeats=5)
    assert layers == 400
    assert ours < public / 5
