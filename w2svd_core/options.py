"""The settings as a table, and the command line and `--help` that are made from it.

A `Setting` is what a command line, a help page or a node widget needs to know of one leaf of the recipe.
"""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from .errors import UserError
from .sections import Section
from .settings import Recipe

HELP_WIDTH = 100

Kind = Literal["bool", "int", "float", "text", "choice", "numbers", "texts"]


@dataclass(frozen=True)
class Setting:
    """One leaf of the recipe, as the command line, the help and a node widget need it."""

    key: str  # "student.lr", or "seed" at the top
    kind: Kind
    default: object
    meaning: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    rule: str

    @property
    def expected(self) -> str:
        """What a value must be, in words: "a whole number from 1 to 100 (updates)"."""
        unit = f" ({self.unit})" if self.unit else ""
        if self.rule:
            return self.rule + unit
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        noun = {"bool": "true or false", "int": "a whole number", "float": "a number", "text": "text"}[self.kind]
        if self.low is not None and self.high is not None:
            return f"{noun} from {_number(self.low)} to {_number(self.high)}{unit}"
        return noun + unit

    @property
    def shown_default(self) -> str:
        """The default as it is written on the command line."""
        return show(self.default)

    def parse(self, text: str) -> object:
        """Read a plain text as this setting's type; one that does not fit comes back as it is."""
        try:
            match self.kind:
                case "bool":
                    return _BOOLEANS.get(text.strip().lower(), text)
                case "int":
                    return int(text)
                case "float":
                    return float(text)
                case "numbers":
                    inner = text.strip().removeprefix("[").removesuffix("]")
                    return tuple(float(part) for part in inner.split(","))
                case "texts":
                    inner = text.strip().removeprefix("[").removesuffix("]")
                    return tuple(part.strip() for part in inner.split(",") if part.strip())
                case _:
                    return text
        except ValueError:
            return text


_BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def show(value: object) -> str:
    """A value as a person writes it: true, 0.25, "text" without quotes, 1,0.5,0 for a list."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return ",".join(show(part) for part in value)
    return "null" if value is None else str(value)


def _number(value: float) -> str:
    return f"{value:.10g}"


@cache
def all_settings() -> dict[str, Setting]:
    """Every leaf setting by its key, in the order of the models: top level first, then section by section."""
    return {leaf.key: leaf for leaf in _leaves(Recipe, "")}


def value_of(recipe: Recipe, key: str) -> object:
    """A setting by its key."""
    value: object = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def sections() -> dict[str, str]:
    """Section names with what each is about; "" is the top level."""
    found = {"": _about(Recipe)}
    for name, field in Recipe.model_fields.items():
        if _is_section(field.annotation):
            found[name] = _about(field.annotation)
    return found


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _about(model: Any) -> str:
    return str(model.__doc__).strip().splitlines()[0]


def _leaves(model: type[Section], prefix: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if _is_section(annotation):
            yield from _leaves(annotation, f"{name}.")
        else:
            yield _leaf(prefix + name, field, annotation)


def _leaf(key: str, field: FieldInfo, annotation: Any) -> Setting:
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or not field.description:
        raise TypeError(f"{key} was not made with setting()")
    names: dict[Any, Kind] = {bool: "bool", int: "int", float: "float", str: "text"}
    is_choice = get_origin(annotation) is Literal
    names |= {tuple[str, ...]: "texts", tuple[float, ...]: "numbers"}
    kind: Kind = "choice" if is_choice else names[annotation]
    lows = [float(str(limit.ge)) for limit in field.metadata if isinstance(limit, Ge)]
    highs = [float(str(limit.le)) for limit in field.metadata if isinstance(limit, Le)]
    return Setting(
        key=key,
        kind=kind,
        default=field.default,
        meaning=field.description,
        unit=str(extra["unit"]),
        low=lows[0] if lows else None,
        high=highs[0] if highs else None,
        choices=tuple(get_args(annotation)) if is_choice else (),
        rule=str(extra["rule"]),
    )


def suggestion(key: str) -> str:
    keys = list(all_settings())
    last = key.rpartition(".")[2]
    same = [known for known in keys if known.rpartition(".")[2] == last]
    near = same[:3] or difflib.get_close_matches(key, keys, 1, 0.6)
    if not near:
        ends = {known.rpartition(".")[2]: known for known in keys}
        near = [ends[end] for end in difflib.get_close_matches(last, list(ends), 1, 0.7)]
    return f"did you mean {' or '.join(near)}" if near else "--help lists every setting"


class Parser(argparse.ArgumentParser):
    """An argument parser whose faults are `UserError`s, so that every door ends alike: a sentence, code 2."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message[:1].upper()}{message[1:]}; --help lists what there is.")


class _Collect(argparse.Action):
    """Keeps `--section.key VALUE` as `namespace.settings["section.key"] = VALUE`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        key = self.option_strings[0].removeprefix("--")
        namespace.settings = {**namespace.settings, key: values}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a door take every setting as `--section.key VALUE`, and list them all at the end of its `--help`.

    Call it after the door's own arguments: where both have a name (`--seed`), the door's own meaning stays.
    """
    parser.allow_abbrev = False
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = settings_help()
    parser.set_defaults(settings={})
    for key in all_settings():
        try:
            parser.add_argument(f"--{key}", action=_Collect, help=argparse.SUPPRESS, metavar="VALUE", dest="settings")
        except argparse.ArgumentError:
            continue


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """The door's own arguments, and the settings given on the command line (texts by key, for `load_recipe`).

    Raises:
        UserError: an unknown option, with the nearest one; from a `Parser` also any other fault.
    """
    namespace, unknown = parser.parse_known_args(arguments)
    options = [text for text in unknown if text.startswith("-")]
    if options:
        option = options[0].partition("=")[0]
        raise UserError(f"There is no option {option}; {_option_suggestion(parser, option)}.")
    if unknown:
        raise UserError(f"There is one argument too many, {unknown[0]!r}; settings are given as --section.key VALUE.")
    settings: dict[str, str] = namespace.settings
    del namespace.settings
    return namespace, settings


def _option_suggestion(parser: argparse.ArgumentParser, option: str) -> str:
    own = [text.strip(",[]") for text in parser.format_usage().split() if text.strip("[").startswith("--")]
    near = difflib.get_close_matches(option, own, 1, 0.75)
    if near:
        return f"did you mean {near[0]}"
    return suggestion(option.lstrip("-").replace("-", "_")).replace("mean ", "mean --").replace(" or ", " or --")


def settings_help() -> str:
    """Every setting with its default, range, unit and meaning, section by section; ends each `--help`."""
    lines = ["settings (a recipe's value stands over the default, the command line's over both):"]
    for section, about in sections().items():
        lines += ["", f"{section or 'top level'}: {about}"]
        for key, leaf in all_settings().items():
            if key.rpartition(".")[0] == section:
                default = leaf.shown_default or "empty"
                lines.append(f"  --{key} VALUE")
                text = f"{leaf.meaning}; {leaf.expected}; default {default}"
                lines += textwrap.wrap(text, HELP_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
