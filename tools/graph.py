"""A workflow written once, and its two files: in API format, and in the page's own format with groups and notes."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core_nodes import Kind, Socket, Widget
from packed import ROOT, schemas

WIDE, GAP, TITLE = 340, 50, 30  # px: width of a node, between nodes, a node's head
# px of height: a socket, a widget, a node's edges, what a long text adds, and what a linked one
SOCKET, WIDGET, EDGE, TEXT, LINKED = 20, 24, 14, 90, 30
CHARACTER, WIDEST = 6.5, 520  # px: of a widget's text, and what a node may become for the sake of one
NOTE_LINE, NOTE_CHARACTER, NOTE_LEAST, HEAD_CHARACTER = 14, 6, 88, 14  # px: texts of notes, names of groups
ROW_OF_GROUPS = 3600  # px after which a group begins a new row
COLOURS = ("#3f789e", "#8a5aa8", "#3d8a5f", "#a06a2c", "#5b6b2f")
PREVIEWS = {
    "W2SVD_ConvertLoRA": 60,
    "W2SVD_LoadLoRA": 110,
    "W2SVD_Metrics": 170,
    "W2SVD_PlotLoss": 240,
    "W2SVD_SaveLoRA": 60,
    "W2SVD_Sigmas": 130,
    "W2SVD_Train": 320,
    "W2SVD_WeakLoRA": 90,
}  # px of the picture or text on a node
VIDEOS = {"W2SVD_SideBySide": 0.4}  # height over width of the video that the page puts below a node's widgets
LEAST = {"W2SVD_Metrics": 500, "W2SVD_Sigmas": 360}  # px of width that the text on a node takes


def own_kinds() -> dict[str, Kind]:
    """The extension's nodes by their schemas."""
    return {name: _own(schema) for name, schema in schemas().items()}


def _own(schema: Any) -> Kind:
    sockets, widgets = [], []
    for entry in schema.inputs or ():
        label = entry.display_name or entry.id
        if entry.io_type in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") and not getattr(entry, "force_input", None):
            value = entry.options[0] if entry.default is None and entry.io_type == "COMBO" else entry.default
            control = bool(getattr(entry, "control_after_generate", False))
            multiline = bool(getattr(entry, "multiline", False))
            widgets.append(Widget(entry.id, entry.io_type, value, control, multiline, label))
        else:
            sockets.append(Socket(entry.id, entry.io_type, bool(entry.optional), label))
    outputs = tuple(Socket(output.display_name, output.io_type) for output in schema.outputs or ())
    preview, video = PREVIEWS.get(schema.node_id, 0), VIDEOS.get(schema.node_id, 0.0)
    return Kind(schema.display_name, tuple(sockets), tuple(widgets), outputs, False, preview, video=video)


@dataclass(frozen=True)
class Out:
    """An output of a node, to be given to another's input."""

    node: Node
    slot: int


@dataclass(eq=False)
class Node:
    """A node of a workflow."""

    key: int
    name: str
    kind: Kind
    given: Mapping[str, Any]
    title: str
    models: tuple[Mapping[str, str], ...]
    width: int
    shape: float
    pos: tuple[int, int] = (0, 0)

    def out(self, name: str) -> Out:
        """An output by its name."""
        return Out(self, [output.name for output in self.kind.outputs].index(name))

    @property
    def height(self) -> int:
        """px below the head."""
        kind = self.kind
        sockets = max(len(kind.sockets), len(kind.outputs))
        widgets = len(kind.widgets) + sum(widget.control for widget in kind.widgets)
        texts = [self.given.get(widget.name) for widget in kind.widgets if widget.multiline]
        high = sum(LINKED if isinstance(text, Out) else TEXT for text in texts)
        return EDGE + SOCKET * sockets + WIDGET * widgets + high + kind.preview

    @property
    def least(self) -> int:
        """px of width that it asks for, or that the longest text of a widget takes."""
        lines = [widget for widget in self.kind.widgets if not widget.multiline]
        longest = max((len(widget.label or widget.name) + len(str(self.value(widget))) for widget in lines), default=0)
        return max(self.width, LEAST.get(self.name, 0), min(WIDEST, int(80 + CHARACTER * longest)))

    @property
    def room(self) -> int:
        """px below the head once the node has run."""
        return self.height + self.kind.growth + int(self.video * self.width)

    @property
    def video(self) -> float:
        """Height over width of the video that it shows."""
        return self.shape or self.kind.video

    def value(self, widget: Widget) -> Any:
        """What a widget shows; its default where it is linked."""
        given = self.given.get(widget.name, widget.default)
        return widget.default if isinstance(given, Out) else given


@dataclass
class Group:
    """Nodes that belong together, column by column, with a note above the first."""

    flow: Flow
    title: str
    note: str
    below: bool = False  # begins a new row
    columns: list[list[Node]] = field(default_factory=list)

    @property
    def widths(self) -> list[int]:
        """px of each column."""
        return [max(node.least for node in column) for column in self.columns]

    @property
    def wide(self) -> int:
        """px of its columns, or of its name."""
        return max(sum(self.widths) + GAP * (len(self.widths) - 1), HEAD_CHARACTER * len(self.title) - GAP)

    @property
    def note_height(self) -> int:
        """px below the head of its note."""
        lines = sum(1 + NOTE_CHARACTER * len(line) // (self.wide - GAP) for line in self.note.splitlines())
        return max(NOTE_LEAST, GAP + NOTE_LINE * lines)

    def place(self, left: int, top: int) -> int:
        """Give its nodes their places and widths; returned is where the lowest ends."""
        lowest = top
        for column, width in zip(self.columns, self.widths, strict=True):
            y = top
            for node in column:
                node.pos, node.width = (left, y), node.least if node.video else width
                lowest = max(lowest, y + node.room)
                y += node.room + TITLE + GAP // 2
            left += width + GAP
        return lowest

    def column(self) -> Group:
        """Begin a new column."""
        self.columns.append([])
        return self

    def add(
        self,
        name: str,
        /,
        title: str = "",
        models: tuple[Mapping[str, str], ...] = (),
        width: int = WIDE,
        shape: float = 0.0,
        **given: Any,
    ) -> Node:
        """A node below the last one of this column; `shape` is the height over the width of what it shows, where
        that is not usual.

        Raises:
            ValueError: an input that the node has not, or a socket that lacks its link.
        """
        kind = self.flow.kinds[name]
        known = {entry.name for entry in (*kind.sockets, *kind.widgets)}
        missing = {entry.name for entry in kind.sockets if not entry.optional} - set(given)
        if set(given) - known or missing:
            raise ValueError(f"{self.flow.name}: {name} has no {set(given) - known}, lacks {missing}")
        node = Node(len(self.flow.nodes) + 1, name, kind, given, title or kind.title, models, width, shape)
        self.flow.nodes.append(node)
        if not self.columns:
            self.column()
        self.columns[-1].append(node)
        return node


@dataclass
class Flow:
    """A workflow.

    Attributes:
        name: of its files.
        title: on its thumbnail.
    """

    name: str
    title: str
    kinds: Mapping[str, Kind]
    nodes: list[Node] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def group(self, title: str, note: str, below: bool = False) -> Group:
        """A new group, right of the last one, or `below` it."""
        self.groups.append(Group(self, title, note, below))
        return self.groups[-1]

    # ---- API format

    def api(self) -> dict[str, Any]:
        """What is queued."""
        return {
            str(node.key): {
                "class_type": node.name,
                "inputs": {
                    entry.name: _queued(node.given.get(entry.name, getattr(entry, "default", None)))
                    for entry in (*node.kind.sockets, *node.kind.widgets)
                    if entry.name in node.given or isinstance(entry, Widget)
                },
                "_meta": {"title": node.title},
            }
            for node in self.nodes
        }

    # ---- the page's format

    def page(self) -> dict[str, Any]:
        """What the page opens."""
        groups, notes = self._place()
        links: list[list[Any]] = []
        for node in self.nodes:
            for slot, entry in enumerate((*node.kind.sockets, *node.kind.widgets)):
                source = node.given.get(entry.name)
                if isinstance(source, Out):
                    kind = source.node.kind.outputs[source.slot].type
                    links.append([len(links) + 1, source.node.key, source.slot, node.key, slot, kind])
        shown = [self._shown(node, order, links) for order, node in enumerate(self.nodes)]
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"w2svd/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes) + len(notes),
            "last_link_id": len(links),
            "nodes": shown + notes,
            "links": links,
            "groups": groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _shown(self, node: Node, order: int, links: list[list[Any]]) -> dict[str, Any]:
        into = {(link[3], link[4]): link[0] for link in links}
        inputs = []
        for slot, entry in enumerate((*node.kind.sockets, *node.kind.widgets)):
            one: dict[str, Any] = {"name": entry.name, "type": entry.type, "link": into.get((node.key, slot))}
            if isinstance(entry, Socket) and entry.optional:
                one["shape"] = 7
            if isinstance(entry, Widget):
                one["widget"] = {"name": entry.name}
            inputs.append(one)
        outputs = [
            {
                "name": output.name,
                "type": output.type,
                "links": [link[0] for link in links if (link[1], link[2]) == (node.key, slot)] or None,
            }
            for slot, output in enumerate(node.kind.outputs)
        ]
        values: list[Any] = []
        for widget in node.kind.widgets:
            values += [node.value(widget), *(["fixed"] if widget.control else [])]
        properties: dict[str, Any] = {
            "cnr_id": "comfy-core" if node.kind.core else "w2svd",
            "ver": "0.3.64" if node.kind.core else version(),
            "Node name for S&R": node.name,
        }
        if node.models:
            properties["models"] = list(node.models)
        shown = {
            "id": node.key,
            "type": node.name,
            "pos": list(node.pos),
            "size": [node.width, node.height],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": properties,
            "widgets_values": values,
        }
        return shown | ({"title": node.title} if node.title != node.kind.title else {})

    def _rows(self) -> list[list[Group]]:
        """The groups, row by row."""
        rows: list[list[Group]] = [[]]
        for group in self.groups:
            row = rows[-1]
            if row and (group.below or sum(one.wide + 2 * GAP for one in row) + group.wide > ROW_OF_GROUPS):
                rows.append([])
            rows[-1].append(group)
        return rows

    def _place(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Give every node its place; returned are the groups and the notes.

        A row that begins because the one before it is full ends where that one ends: its links are shorter so.
        """
        groups: list[dict[str, Any]] = []
        notes: list[dict[str, Any]] = []
        top, end = 0, 0
        for row in self._rows():
            full = sum(group.wide + 2 * GAP for group in row)
            left = 0 if row[0].below else max(0, end - full)
            end, lowest = left + full, top
            for group in row:
                number = len(groups)
                high = group.note_height
                notes.append(
                    _note(len(self.nodes) + number + 1, group.note, (left, top + 2 * TITLE), (group.wide, high))
                )
                bottom = group.place(left, top + 4 * TITLE + high)
                box = [left - GAP // 2, top - GAP // 2, group.wide + GAP, bottom - top + GAP]
                colour = COLOURS[number % len(COLOURS)]
                groups.append({"id": number + 1, "title": group.title, "bounding": box, "color": colour, "flags": {}})
                left, lowest = left + group.wide + 2 * GAP, max(lowest, bottom)
            top = lowest + 2 * GAP
        return groups, notes


def _note(key: int, text: str, pos: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": key,
        "type": "MarkdownNote",
        "pos": list(pos),
        "size": list(size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Note",
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }


def _queued(value: Any) -> Any:
    return [str(value.node.key), value.slot] if isinstance(value, Out) else value


def version() -> str:
    """The extension's."""
    text = (ROOT / "w2svd_core" / "__init__.py").read_text(encoding="utf-8")
    return text.split('__version__ = "')[1].split('"')[0]


def settings_of_recipe(name: str, kind: Kind) -> dict[str, Any]:
    """A recipe's values for the widgets of a node that are made from settings."""
    sys.path.insert(0, str(ROOT))
    from w2svd_core.config import all_settings, load_recipe
    from w2svd_core.options import show, value_of

    recipe = load_recipe(name)
    values = {key.replace(".", "_"): value_of(recipe, key) for key in all_settings()}
    found = {widget.name: values[widget.name] for widget in kind.widgets if widget.name in values}
    return {key: show(value) if isinstance(value, tuple) else value for key, value in found.items()}
