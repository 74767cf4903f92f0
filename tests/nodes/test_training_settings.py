"""What the training nodes say of their settings before a run."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from w2svd_core.config import load_recipe
from w2svd_core.options import value_of

Modules = Callable[[str], ModuleType]


def test_the_portraits_defaults_on_a_large_model_are_told(module_of: Modules) -> None:
    training = module_of("nodes.training")
    portraits = load_recipe("portraits")
    untouched = {key: value_of(portraits, key) for key in training.SETTINGS}
    large = load_recipe("wan_t2v_14b", untouched)
    told = training.left_as_portraits(large, "wan_t2v_14b")
    assert "train.batch" in told and "matching.guidance_scale" in told and "wan_t2v_14b's" in told
    small = load_recipe("wan_t2v_14b", untouched | {"data.height": 32, "data.width": 32})
    assert training.left_as_portraits(small, "wan_t2v_14b") == ""
    assert training.left_as_portraits(load_recipe("wan_t2v_14b", {"train.steps": 30}), "wan_t2v_14b") == ""
