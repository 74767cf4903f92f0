"""What every node is written with: keywords by version, errors in one sentence, widgets from the settings."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from standin import installed, load_pack


@pytest.fixture(scope="module")
def compat(module_of: Any) -> Any:
    return module_of("nodes.compat")


def test_a_later_keyword_is_left_out_where_it_is_unknown(compat: Any) -> None:
    assert compat.field(compat.io.Int, "steps", default=4, advanced=True).keywords == {"id": "steps", "default": 4}
    assert compat.schema(node_id="W2SVD_X", search_aliases=["x"]).keywords == {"node_id": "W2SVD_X"}


def test_a_later_keyword_is_kept_where_it_is_known(pack: ModuleType, tmp_path: Path) -> None:
    with installed(tmp_path, later=True):
        compat = importlib.import_module(f"{load_pack('later_pack').__name__}.nodes.compat")
        assert compat.field(compat.io.Int, "steps", advanced=True).advanced is True
        assert compat.schema(node_id="W2SVD_X", search_aliases=["x"]).search_aliases == ["x"]


def test_a_misspelled_keyword_is_a_mistake(compat: Any) -> None:
    with pytest.raises(TypeError, match="tooltop"):
        compat.field(compat.io.Int, "steps", tooltop="")
    with pytest.raises(TypeError, match="categorie"):
        compat.schema(node_id="W2SVD_X", categorie="")


class Interrupted(Exception):
    """As ComfyUI's own, an ordinary exception."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device", "run"), "refused run: No space left on device; check path"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), "not enough memory"),
        (ModuleNotFoundError("No module named 'peft'"), "No module named 'peft'"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(compat: Any, error: Exception, sentence: str) -> None:
    @compat.told
    def execute() -> None:
        raise error

    with pytest.raises(RuntimeError, match=sentence) as told:
        execute()
    assert told.value.__context__ is None
    assert "\n" not in str(told.value)


def test_a_user_error_is_its_own_sentence(compat: Any, module_of: Any) -> None:
    @compat.told
    def execute() -> None:
        raise module_of("w2svd_core.errors").UserError("There are no clips; connect some.")

    with pytest.raises(RuntimeError) as told:
        execute()
    assert str(told.value) == "There are no clips; connect some."


@pytest.mark.parametrize("error", [Interrupted(), ValueError("a mistake of ours"), KeyError("x")])
def test_everything_else_goes_through(compat: Any, error: Exception) -> None:
    @compat.told
    def execute() -> None:
        raise error

    with pytest.raises(type(error)) as told:
        execute()
    assert told.value is error


def test_every_setting_can_be_a_widget_that_holds_its_default(compat: Any, module_of: Any) -> None:
    settings = module_of("w2svd_core.options").all_settings()
    widgets = dict(zip(settings, compat.widgets(settings), strict=True))
    assert len({widget.id for widget in widgets.values()}) == len(settings)  # no two keys share an id
    defaults = {widget.id: widget.default for widget in widgets.values()}
    values = compat.setting_values(defaults)
    assert set(values) == set(settings)
    recipe = module_of("w2svd_core.config").check_recipe(values, "in a test")
    assert recipe == module_of("w2svd_core.settings").Recipe()


def test_a_widget_has_the_range_and_the_meaning_of_its_setting(compat: Any) -> None:
    lr, kind, sigmas, steps = compat.widgets(("student.lr", "student.kind", "student.sigmas", "train.steps"))
    assert (lr.id, lr.display_name, lr.min, lr.max, lr.default, lr.round) == (
        "student_lr",
        "student.lr",
        0,
        0.1,
        1e-4,
        False,
    )
    assert lr.step == 1e-6
    assert lr.tooltip == "Learning rate: a number from 0 to 0.1."
    assert kind.options == ["lora", "full"]
    assert sigmas.default == "1,0.9375,0.8333333,0.625,0"
    assert (steps.min, steps.step, steps.control_after_generate) == (1, 1, False)
    assert "updates" in steps.tooltip


def test_a_node_may_have_other_defaults_than_the_recipe(compat: Any) -> None:
    (widget,) = compat.widgets(("student.lr",), {"student.lr": 2e-3})
    assert (widget.default, widget.step) == (2e-3, 1e-5)


def test_a_number_can_be_set_to_its_default_and_its_ends(compat: Any, module_of: Any) -> None:
    for key, leaf in module_of("w2svd_core.options").all_settings().items():
        if leaf.kind == "float":
            step = compat.float_step(leaf, leaf.default)
            for value in (leaf.default, leaf.high):
                assert abs(value / step - round(value / step)) < 1e-6, key
