"""Help pages and languages say what the schemas say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pages
import pytest

ROOT = Path(__file__).parents[2]
HOW = "run python tools/pages.py"
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def test_english_names_are_those_of_the_schemas(schemas: dict[str, Any]) -> None:
    assert pages.read_locale("en") == {name: pages.english(schema) for name, schema in schemas.items()}, HOW


def test_the_translation_has_every_name_and_no_other() -> None:
    assert pages.untranslated(pages.read_locale("en"), pages.read_locale("zh")) == []


def texts(tree: Any) -> list[str]:
    return [tree] if isinstance(tree, str) else [text for part in tree.values() for text in texts(part)]


def test_the_translation_is_chinese() -> None:
    for name, node in pages.read_locale("zh").items():
        tooltips = [entry["tooltip"] for kind in ("inputs", "outputs") for entry in node.get(kind, {}).values()]
        for text in (node["display_name"], node["description"], *tooltips):
            assert CHINESE.search(text), f"{name}: {text}"


@pytest.mark.parametrize("language", pages.LANGUAGES)
def test_no_text_holds_signs_that_the_page_would_read_as_its_own(language: str) -> None:
    for text in texts(pages.read_locale(language)):
        assert pages.escaped(pages.plain(text)) == text, text


@pytest.mark.parametrize("language", pages.LANGUAGES)
def test_every_node_has_a_page_with_its_inputs_and_outputs(language: str, schemas: dict[str, Any]) -> None:
    names = pages.read_locale(language)
    for node_id, schema in schemas.items():
        text = pages.page_path(node_id, language).read_text(encoding="utf-8")
        above = pages.prose(text)
        assert above.splitlines()[0] == f"# {pages.plain(names[node_id]['display_name'])}", node_id
        assert len(above.splitlines()) > 2, f"{node_id}: a page says more than its name"
        assert text == pages.rendered(above, schema, names[node_id], language), f"{node_id}: {HOW}"
        assert language == "en" or CHINESE.search(above), node_id


def test_no_page_is_of_a_node_that_is_gone(schemas: dict[str, Any]) -> None:
    known = {pages.page_path(node_id, language) for node_id in schemas for language in pages.LANGUAGES}
    assert set((ROOT / "web").rglob("*.md")) == known


def test_nothing_but_pages_is_served() -> None:
    assert {path.suffix for path in (ROOT / "web").rglob("*") if path.is_file()} <= {".md"}
