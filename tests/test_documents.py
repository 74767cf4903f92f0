"""The pages that people read: what they link to and show is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    places = [place for place in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in place]
    assert [place for place in places if not (page.parent / place).exists()] == []
    assert re.findall(r"@[A-Z0-9]+@", text) == []  # a number that somebody meant to fill in
