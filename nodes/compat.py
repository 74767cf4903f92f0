"""One way to write a node for every ComfyUI from 0.3.64 on, and its widgets made from the recipe's settings.

A module of nodes uses what this file hands out, and `comfy_api` nowhere else.
"""

from __future__ import annotations

import functools
import gc
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from comfy_api.latest import ComfyExtension, InputImpl, Types, io, ui

from ..w2svd_core.errors import UserError, out_of_memory

if TYPE_CHECKING:
    from ..w2svd_core.options import Setting

__all__ = [
    "CATEGORY",
    "ComfyExtension",
    "InputImpl",
    "Types",
    "blocked",
    "field",
    "io",
    "schema",
    "setting_values",
    "told",
    "ui",
    "widgets",
]

CATEGORY = "W2SVD"

# Keywords that came after 0.3.64. Only these are left out where they are unknown; any other unknown one is a mistake.
LATER = frozenset(
    {
        "accept_all_inputs",
        "advanced",
        "essentials_category",
        "extra_dict",
        "gradient_stops",
        "has_intermediate_output",
        "is_dev_only",
        "raw_link",
        "search_aliases",
    }
)

P = ParamSpec("P")
T = TypeVar("T")


def schema(**keywords: Any) -> io.Schema:
    """`io.Schema` without the keywords that this ComfyUI does not know yet."""
    return io.Schema(**_known(io.Schema, keywords))


def field(io_type: Any, id: str, **keywords: Any) -> Any:
    """`io_type.Input(id, ...)` without the keywords that this ComfyUI does not know yet."""
    return io_type.Input(id, **_known(io_type.Input.__init__, keywords))


def _known(function: Callable[..., Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in keywords.items() if name in parameters or name not in LATER}


def blocked(why: str) -> Any:
    """An output that nodes behind it can't have, and why; the others are handed on."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(why)


# ---- errors


def told(function: Callable[P, T]) -> Callable[P, T]:
    """Let a node's `execute` end in one sentence: what is wrong, where, what to do.

    Put it below `@classmethod`. What a user can mend (`UserError`, a full disk, too little memory, a package that is
    missing) is raised again as a RuntimeError of that sentence; everything else, cancelling among it, goes through.
    """

    @functools.wraps(function)
    def telling(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            full = out_of_memory(error)
        if full:  # only here, where the failed call's tensors are let go of
            _unload()
        raise RuntimeError(sentence)

    return telling


def _sentence(error: Exception) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        return (
            "There is not enough memory for this node; use fewer or smaller clips, a smaller batch or rank, "
            "or gradient checkpointing, and queue again."
        )
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        reason = error.strerror or str(error)
        return f"The system refused{place}: {reason}; check path, permissions and free space."
    if isinstance(error, ImportError):
        return (
            f"A package that this node needs can't be imported ({' '.join(str(error).split())}); "
            "run pip install -r requirements.txt in this extension's folder, with ComfyUI's Python."
        )
    return None


def _unload() -> None:
    """Give the memory of every loaded model back, as ComfyUI does when it sees the error itself."""
    try:
        from comfy import model_management
    except ImportError:
        return
    model_management.unload_all_models()
    gc.collect()  # hooks tie models into circles
    model_management.soft_empty_cache()


# ---- widgets from the recipe's settings


def widgets(
    keys: Iterable[str],
    defaults: Mapping[str, object] | None = None,
    advanced: Collection[str] = (),
    optional: bool = False,
) -> list[Any]:
    """Inputs for settings of the recipe, with the type, default, range, unit and meaning that they have there.

    Args:
        keys: such as "student.lr"; the input's id is "student_lr", its label the key.
        defaults: other defaults than the recipe's own, by key.
        advanced: the keys that are folded away where ComfyUI can do it.
        optional: a graph may leave them out, as older ones do.
    """
    from ..w2svd_core.options import all_settings

    known, own = all_settings(), defaults or {}
    return [_widget(known[key], own.get(key, known[key].default), key in advanced, optional) for key in keys]


def setting_values(values: Mapping[str, object]) -> dict[str, object]:
    """The values of such inputs by key, for `check_recipe` and `load_recipe`; other inputs are left out."""
    from ..w2svd_core.options import all_settings

    return {key: values[_id(key)] for key in all_settings() if _id(key) in values}


def _id(key: str) -> str:
    return key.replace(".", "_")


def _widget(leaf: Setting, default: object, advanced: bool, optional: bool) -> Any:
    from ..w2svd_core.options import show

    expected = "" if leaf.expected == "text" else f": {leaf.expected}"
    said: dict[str, Any] = {
        "display_name": leaf.key,
        "tooltip": f"{leaf.meaning[:1].upper()}{leaf.meaning[1:]}{expected}.",
        "advanced": advanced or None,
        "optional": optional,
    }
    match leaf.kind:
        case "bool":
            return field(io.Boolean, _id(leaf.key), default=default, **said)
        case "int":
            limits = {"min": _whole(leaf.low), "max": _whole(leaf.high), "step": 1}
            return field(io.Int, _id(leaf.key), default=default, control_after_generate=False, **limits, **said)
        case "float":
            limits = {"min": leaf.low, "max": leaf.high, "step": float_step(leaf, default)}
            return field(io.Float, _id(leaf.key), default=default, round=False, **limits, **said)
        case "choice":
            return field(io.Combo, _id(leaf.key), options=list(leaf.choices), default=default, **said)
        case _:
            return field(io.String, _id(leaf.key), default=show(default), **said)


def _whole(limit: float | None) -> int | None:
    return None if limit is None else int(limit)


def float_step(leaf: Setting, default: object) -> float:
    """The step of a number's arrows, which is also what ComfyUI shows: two digits below the default's first one."""
    places = [2, _places(leaf.high or 0)]
    if isinstance(default, float) and default > 0:
        places.append(2 - math.floor(math.log10(default)))
    return float(f"1e-{min(max(places), 8)}")


def _places(value: float) -> int:
    return len(f"{value:.8f}".rstrip("0").partition(".")[2])
