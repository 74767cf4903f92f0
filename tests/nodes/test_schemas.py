"""Every node's schema by itself: ids, names, tooltips, ranges, defaults, sockets."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GROUPS = {"loaders", "data", "training", "lora", "sampling", "evaluation", "portraits"}
PRIVATE = {"W2SVD_MODEL", "W2SVD_DATASET", "W2SVD_SHIFT", "W2SVD_RECIPE"}


def inputs(schemas: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{name}.{entry.id}", entry) for name, schema in schemas.items() for entry in schema.inputs or ()]


def test_ids_are_ours_and_stand_in_the_source_as_they_are(schemas: dict[str, Any]) -> None:
    """ComfyUI's Manager finds a missing pack by reading the source."""
    literal = set()
    for path in (ROOT / "nodes").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.keyword) and call.arg == "node_id" and isinstance(call.value, ast.Constant):
                literal.add(call.value.value)
    assert set(schemas) == literal
    assert all(re.fullmatch(r"W2SVD_[A-Za-z]+", name) for name in schemas)


def test_nodes_say_what_they_are(schemas: dict[str, Any]) -> None:
    for name, schema in schemas.items():
        assert schema.display_name, name
        assert schema.description and schema.description.endswith("."), name
        root, _, group = schema.category.partition("/")
        assert root == "W2SVD" and group in GROUPS, f"{name}: {schema.category}"
    titles = [schema.display_name for schema in schemas.values()]
    assert len(set(titles)) == len(titles)


def test_inputs_have_a_tooltip_that_is_a_sentence(schemas: dict[str, Any]) -> None:
    for place, entry in inputs(schemas):
        assert entry.tooltip and entry.tooltip.endswith("."), place
        assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.id), place


def test_numbers_have_a_range_a_step_and_a_default_inside(schemas: dict[str, Any]) -> None:
    for place, entry in inputs(schemas):
        if entry.io_type in ("INT", "FLOAT") and not entry.force_input:
            assert None not in (entry.min, entry.max, entry.default), place
            assert entry.min <= entry.default <= entry.max, place
            assert entry.io_type == "INT" or entry.step, place  # else the page rounds to one digit


def test_choices_hold_their_default(schemas: dict[str, Any]) -> None:
    for place, entry in inputs(schemas):
        if entry.io_type == "COMBO":
            assert isinstance(entry.options, list), place
            assert entry.default is None or entry.default in entry.options, place


def test_a_seed_is_not_changed_behind_a_training(schemas: dict[str, Any]) -> None:
    for place, entry in inputs(schemas):
        if entry.io_type == "INT" and "seed" in entry.id:
            assert entry.control_after_generate is not None, place


def test_outputs_have_names_and_sockets_are_native_or_known(schemas: dict[str, Any]) -> None:
    for name, schema in schemas.items():
        for output in schema.outputs or ():
            assert output.display_name and output.tooltip, name
            assert output.io_type in PRIVATE or not output.io_type.startswith("W2SVD"), name
        names = [output.display_name for output in schema.outputs or ()]
        assert len(set(names)) == len(names), name


def test_every_private_socket_has_both_ends(schemas: dict[str, Any]) -> None:
    given = {output.io_type for schema in schemas.values() for output in schema.outputs or ()}
    taken = {kind for _, entry in inputs(schemas) for kind in entry.io_type.split(",")}
    for kind in PRIVATE & (given | taken):
        assert kind in given and kind in taken, kind


def test_a_node_that_gives_nothing_is_an_output_node(schemas: dict[str, Any]) -> None:
    for name, schema in schemas.items():
        assert schema.outputs or schema.is_output_node, name


def test_execute_takes_what_the_schema_names(nodes: dict[str, Any], schemas: dict[str, Any]) -> None:
    for name, node in nodes.items():
        parameters = inspect.signature(node.execute).parameters
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
            continue
        ids = {entry.id for entry in schemas[name].inputs or ()}
        assert ids == set(parameters), name
        for entry in schemas[name].inputs or ():
            empty = parameters[entry.id].default is inspect.Parameter.empty
            assert empty != bool(entry.optional), f"{name}.{entry.id}"
