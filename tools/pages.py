"""Help pages and languages from the schemas: python tools/pages.py

It writes locales/en/nodeDefs.json, and the lists of every page in web/docs; what stands above the lists is written
by hand. locales/zh/nodeDefs.json is a translation by hand, out of which the Chinese lists are made. Run it after a
change of a schema; it names what is still to be written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS, LOCALES = ROOT / "web" / "docs", ROOT / "locales"
LANGUAGES = ("en", "zh")
WORDS = {
    "en": {
        "inputs": "Inputs", "outputs": "Outputs", "default": "default", "optional": "optional", "to": " to ",
        "empty": "empty", "file": "a file",
    },
    "zh": {
        "inputs": "输入", "outputs": "输出", "default": "默认值", "optional": "可选", "to": " 到 ",
        "empty": "空", "file": "文件",
    },
}  # fmt: skip
SPECIAL = re.compile(r"[{}@|]")  # what vue-i18n, which shows these texts, would read as its own signs

Names = Mapping[str, Any]  # one node of nodeDefs.json


def escaped(text: str) -> str:
    """A text as the page's translator has to get it."""
    return SPECIAL.sub(lambda sign: "{'" + sign[0] + "'}", text)


def plain(text: str) -> str:
    """The text that `escaped` was made from."""
    return re.sub(r"\{'([{}@|])'\}", r"\1", text)


def english(schema: Any) -> dict[str, Any]:
    """A node's names and tooltips as its schema has them."""
    found: dict[str, Any] = {"display_name": schema.display_name, "description": escaped(schema.description)}
    if schema.inputs:
        found["inputs"] = {
            entry.id: {"name": entry.display_name or entry.id, "tooltip": escaped(entry.tooltip)}
            for entry in schema.inputs
        }
    if schema.outputs:
        found["outputs"] = {
            str(place): {"name": output.display_name, "tooltip": escaped(output.tooltip or "")}
            for place, output in enumerate(schema.outputs)
        }
    return found


def number(value: float) -> str:
    """A number as a person writes it."""
    return f"{value:.10g}"


def values(entry: Any, words: Mapping[str, str]) -> str:
    """What an input may be: "1 to 100", "`lora`, `full`", or nothing."""
    if entry.io_type == "COMBO":
        return ", ".join(f"`{option}`" for option in entry.options) if len(entry.options) > 1 else words["file"]
    low, high = getattr(entry, "min", None), getattr(entry, "max", None)
    return "" if low is None or high is None else f"{number(low)}{words['to']}{number(high)}"


def default(entry: Any, words: Mapping[str, str]) -> str:
    """An input's default, in code; nothing for a socket."""
    value = getattr(entry, "default", None)
    if value is None:
        return ""
    if value == "":
        return words["empty"]
    text = str(value).lower() if isinstance(value, bool) else number(value) if isinstance(value, float) else str(value)
    return f"`{text}`"


def point(head: str, meaning: str) -> list[str]:
    """A point of a list, which fits ComfyUI's narrow panel where a table of several columns does not."""
    return [f"- {head}", "", f"  {meaning}", ""]


def lists(schema: Any, names: Names, language: str) -> str:
    """The end of a page: a list of the inputs and one of the outputs."""
    words = WORDS[language]
    lines: list[str] = []
    if schema.inputs:
        lines += [f"## {words['inputs']}", ""]
        for entry in schema.inputs:
            name = names["inputs"][entry.id]
            value = default(entry, words)
            optional = words["optional"] if entry.optional else ""
            about = [entry.io_type, optional, values(entry, words), value and f"{words['default']} {value}"]
            head = " · ".join([f"**{name['name']}**", *filter(None, about)])
            lines += point(head, plain(name["tooltip"]).replace("\n", " "))
    if schema.outputs:
        lines += [f"## {words['outputs']}", ""]
        for place, output in enumerate(schema.outputs):
            name = names["outputs"][str(place)]
            lines += point(f"**{name['name']}** · {output.io_type}", plain(name["tooltip"]))
    return "\n".join(lines)


def page_path(node_id: str, language: str) -> Path:
    """Where ComfyUI looks for a node's page."""
    return DOCS / f"{node_id}.md" if language == "en" else DOCS / node_id / f"{language}.md"


def prose(text: str) -> str:
    """What of a page is written by hand: everything above the lists."""
    heads = "|".join(re.escape(WORDS[language][key]) for language in LANGUAGES for key in ("inputs", "outputs"))
    return re.split(rf"(?m)^## (?:{heads})$", text)[0].strip()


def rendered(above: str, schema: Any, names: Names, language: str) -> str:
    """A whole page."""
    return f"{above}\n\n{lists(schema, names, language)}"


def read_locale(language: str) -> dict[str, Any]:
    """nodeDefs.json of a language."""
    path = LOCALES / language / "nodeDefs.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def untranslated(ours: Names, theirs: Names, place: str = "") -> list[str]:
    """Keys that a translation lacks, or has too many."""
    missing = [f"+ {place}{key}" for key in ours if key not in theirs] + [
        f"- {place}{key}" for key in theirs if key not in ours
    ]
    for key in ours.keys() & theirs.keys():
        if isinstance(ours[key], dict):
            missing += untranslated(ours[key], theirs[key], f"{place}{key}.")
    return sorted(missing)


def main() -> None:
    """Write everything that can be made, and say what can't."""
    from packed import schemas

    found = schemas()
    own = {node_id: english(schema) for node_id, schema in sorted(found.items())}
    path = LOCALES / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    locales = {"en": own, "zh": read_locale("zh")}
    for line in untranslated(own, locales["zh"]):
        print("locales/zh:", line)
    for node_id, schema in found.items():
        for language in LANGUAGES:
            page = page_path(node_id, language)
            if not page.exists() or not prose(page.read_text(encoding="utf-8")):
                print("to be written:", page.relative_to(ROOT))
            elif not untranslated(own.get(node_id, {}), locales[language].get(node_id, {})):
                above = prose(page.read_text(encoding="utf-8"))
                page.write_text(rendered(above, schema, locales[language][node_id], language), encoding="utf-8")


if __name__ == "__main__":
    main()
