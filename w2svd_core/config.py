"""Recipes: from a name or a YAML file and the command line to one checked `Recipe`, and back to YAML.

The settings are defined in `settings.py`, the command line in `options.py`. Every fault of the input is a
`UserError` of one sentence that names the key, the value and the place. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .errors import UserError
from .options import (
    Parser,
    Setting,
    add_arguments,
    all_settings,
    parse_arguments,
    sections,
    settings_help,
    show,
    suggestion,
    value_of,
)
from .places import PLACE_KEYS
from .settings import Recipe

__all__ = [
    "Parser",
    "Recipe",
    "Setting",
    "add_arguments",
    "all_settings",
    "check_recipe",
    "load_recipe",
    "parse_arguments",
    "recipe_from",
    "recipe_names",
    "recipe_to_yaml",
    "settings_help",
    "settings_of",
]

RECIPES = Path(__file__).parent / "recipes"
COMMAND_LINE = "on the command line"
MAX_BYTES = 1_000_000  # a recipe is a page of text; anything larger is some other file


@dataclass(frozen=True)
class _Given:
    """A value that somebody set, and where: "in recipe portraits (line 3)"."""

    value: object
    where: str


_Values = dict[str, _Given]


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package, sorted."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def load_recipe(
    name_or_path: str | Path, overrides: Mapping[str, object] | None = None, where: str = COMMAND_LINE
) -> Recipe:
    """Read a recipe with everything that it is based on, set the overrides, and check the whole.

    Args:
        name_or_path: a name out of `recipe_names()`, or the path of a YAML file.
        overrides: values by key ("student.lr", "seed"); a text is read as the setting's type.
        where: the place of the overrides, as an error names it.

    Raises:
        UserError: unknown recipe or key, wrong type, out of range, broken YAML, parts that do not fit.
    """
    path = _find(str(name_or_path), Path())
    values = _read_chain(path, ())
    if "name" not in values:
        values["name"] = _Given(path.stem, f"(from the name of {path})")
    values |= _from_overrides(overrides or {}, where)
    place = f"in {_title(path)}" + (f" with the settings {where}" if overrides else "")
    return _build(values, place)


def check_recipe(values: Mapping[str, object], where: str) -> Recipe:
    """A recipe from values alone (a node's widgets, say), by key; what is not named keeps its default.

    Raises:
        UserError: as `load_recipe`; `where` names the place, such as "in node W2SVD Train".
    """
    return _build(_from_overrides(values, where), where)


def recipe_from(recipe: Recipe, place: str) -> Recipe:
    """A recipe that was put together from parts, checked as a whole.

    Raises:
        UserError: the parts do not fit together; `place` says whose they are.
    """
    leaves = {key: value_of(recipe, key) for key in all_settings()}
    return _build({key: _Given(value, place) for key, value in leaves.items()}, place)


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe with every setting written out; `load_recipe` reads it back to an equal one."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    return "# Every setting of this recipe, resolved.\n" + text


def settings_of(text: str) -> dict[str, object]:
    """The values by key that a recipe's YAML text sets, unchecked; nothing for a text that is no YAML mapping."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    found: dict[str, object] = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            found[str(key)] = value
    return found


# ---- reading files


def _title(path: Path) -> str:
    return f"recipe {path.stem}" if path.parent == RECIPES else str(path)


def _find(name_or_path: str, folder: Path) -> Path:
    """The file of a recipe: a bundled name, or a path relative to `folder`."""
    if name_or_path in recipe_names():
        return RECIPES / f"{name_or_path}.yaml"
    path = folder / Path(name_or_path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a recipe; name the YAML file inside it.")
    if path.is_file():
        return path
    near = difflib.get_close_matches(name_or_path, recipe_names(), 1)
    hint = f"did you mean {near[0]}" if near else "name one of these"
    raise UserError(f"There is no recipe and no file {name_or_path!r}; {hint} (there are {', '.join(recipe_names())}).")


def _read_chain(path: Path, above: tuple[Path, ...]) -> _Values:
    """The values of a file on top of those of its `base`; its own win. `above` are its heirs."""
    seen = (*above, path.resolve())
    if path.resolve() in above:
        loop = " -> ".join(_title(step) for step in seen)
        raise UserError(f"Recipes are based on each other in a circle ({loop}); remove one `base:` line.")
    values = _read_file(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base.value, str):
        raise UserError(f"base is {show(base.value)} {base.where}, but it must be the name or path of a recipe.")
    inherited = _read_chain(_find(base.value, path.parent), seen)
    inherited.pop("name", None)
    return inherited | values


def _read_file(path: Path) -> _Values:
    root = _parse_yaml(path, _read_text(path))
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} is not a recipe: it must hold `key: value` lines, and it holds {_noun(root)}.")
    values: _Values = {}
    _flatten(root, "", _title(path), values)
    return values


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is too large for a recipe ({path.stat().st_size} bytes); name a YAML file.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"Cannot read the recipe {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a YAML file: it is no UTF-8 text; name a recipe file.") from error


def _parse_yaml(path: Path, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is broken YAML{line}: {error.problem or error.context}; mend that line.") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a YAML file ({reason}); name a recipe file.") from error


def _noun(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _flatten(node: yaml.MappingNode, prefix: str, title: str, into: _Values) -> None:
    """Put the values of a mapping into `into` by full key ("student.lr"), with the line of each."""
    for key_node, value_node in node.value:
        where = f"in {title} (line {key_node.start_mark.line + 1})"
        key = prefix + (key_node.value if isinstance(key_node, yaml.ScalarNode) else "?")
        if key in into:
            raise UserError(f"{key} is set twice, {into[key].where} and {where}; keep one of the two.")
        if key and key in sections():
            if isinstance(value_node, yaml.MappingNode):
                _flatten(value_node, f"{key}.", title, into)
            elif value_node.value != "":
                found = show(_plain(value_node, None))
                raise UserError(f"{key} is {found} {where}, but it is a section; put `setting: value` lines under it.")
        elif key == "base" or _known(key, where):
            into[key] = _Given(_plain(value_node, all_settings().get(key)), where)


def _plain(node: yaml.Node, leaf: Setting | None) -> object:
    """The value of a node, read as the setting's own type, so `1e-4` is a number and `no` may be a name."""
    if isinstance(node, yaml.SequenceNode):
        element = replace(leaf, kind="text" if leaf.kind == "texts" else "float") if leaf else None
        scalars = all(isinstance(part, yaml.ScalarNode) for part in node.value)  # a list may hold itself
        return tuple(_plain(part, element) for part in node.value) if scalars else "a list of lists"
    if not isinstance(node, yaml.ScalarNode):
        return "a group of values"
    quoted = node.style is not None
    if not quoted and node.tag == "tag:yaml.org,2002:null":
        return None
    text = str(node.value)
    return text if leaf is None or quoted else leaf.parse(text)


# ---- checking


def _known(key: str, where: str) -> bool:
    """True for a setting; otherwise the error, with the nearest keys."""
    if key in all_settings():
        return True
    raise UserError(f"There is no setting {key} (given {where}); {suggestion(key)}.")


def _from_overrides(overrides: Mapping[str, object], where: str) -> _Values:
    values: _Values = {}
    for key, value in overrides.items():
        _known(key, where)
        values[key] = _Given(all_settings()[key].parse(value) if isinstance(value, str) else value, where)
    return values


def _build(values: _Values, place: str) -> Recipe:
    tree: dict[str, Any] = {}
    for key, given in values.items():
        section, _, name = key.rpartition(".")
        value = _at_home(key, tuple(given.value) if isinstance(given.value, list) else given.value)
        (tree.setdefault(section, {}) if section else tree)[name] = value
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    if key in values:
        given, leaf = values[key], all_settings()[key]
        raise UserError(f"{key} is {_short(given.value)} {given.where}, but it must be {leaf.expected}.")
    reason = first.get("ctx", {}).get("error", first["msg"])
    raise UserError(f"The settings {place} do not fit together: {reason}.")


def _at_home(key: str, value: object) -> object:
    """A place of the user's with his home in place of a leading ~; other values as they are."""
    if isinstance(value, tuple):
        return tuple(_at_home(key, part) for part in value)
    named = key in PLACE_KEYS and isinstance(value, str) and value.startswith("~")
    return str(Path(str(value)).expanduser()) if named else value


def _short(value: object) -> str:
    text = " ".join(show(value).split()) if value != "" else "empty"
    return text if len(text) <= 80 else text[:77] + "..."
