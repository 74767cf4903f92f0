"""What a preparation leaves for people: `report.md`, a line for each clip in `clips.csv`, and a contact sheet."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import write_text
from ..pictures import CELL_HEIGHT, Image, enlarge, grid, spread
from ..settings import Data
from .buckets import Bucket, Plan
from .prepare import Prepared
from .shards import Source, known_rows, shard_sources
from .video import read_excerpt, write_png

REPORT, TABLE, SHEET = "report.md", "clips.csv", "contact_sheet.png"
SHOWN, FRAMES = 12, 4  # clips on the sheet, and frames of each
LISTED = 100  # dropped clips in the report; the table has all


@dataclass(frozen=True)
class Used:
    """A clip that is in the set."""

    number: int
    source: Source
    bucket: Bucket

    @property
    def enlarged(self) -> bool:
        """Whether its own picture is smaller than what it was resized to."""
        return self.source.height < self.bucket.height or self.source.width < self.bucket.width


def write_report(prepared: Prepared, settings: Data, plan: Plan) -> Path:
    """Write report, table and sheet into the preparation's folder and return the report.

    Raises:
        UserError: the disk does not serve, or a clip that is to be shown went away.
    """
    folder = prepared.want.folder
    if not prepared.want.clips:
        write_text(folder / REPORT, _prompts_text(prepared, settings))
        return folder / REPORT
    used = used_clips(prepared, plan)
    write_text(folder / TABLE, _table(prepared, used))
    write_png(folder / SHEET, _sheet(prepared, settings, plan, used))
    write_text(folder / REPORT, _clips_text(prepared, settings, used))
    return folder / REPORT


def used_clips(prepared: Prepared, plan: Plan) -> list[Used]:
    """All clips of the set, by number."""
    want = prepared.want
    known = known_rows(want.latents)
    sources: dict[str, list[Source]] = {}
    used = []
    for number, key in enumerate(want.keys):
        if number in prepared.dropped:
            continue
        place = known[key]
        if place.file not in sources:
            sources[place.file] = shard_sources(want.latents / place.file)
        source = sources[place.file][place.row]
        used.append(Used(number, source, Bucket(source.frames, *plan.shape(source.height, source.width))))
    return used


def _clips_text(prepared: Prepared, settings: Data, used: list[Used]) -> str:
    want, dropped = prepared.want, prepared.dropped
    trimmed, enlarged = (
        Counter(u.bucket for u in used if u.source.goes_on), Counter(u.bucket for u in used if u.enlarged)
    )  # fmt: skip
    count = Counter(one.bucket for one in used)
    lines = [
        "# Prepared clips",
        "",
        f"{len(used)} of {len(want.clips)} clips of {settings.folder} are used, {prepared.new} of them encoded now; "
        f"{len(dropped)} were dropped. Every clip has its line in [{TABLE}]({TABLE}).",
        "",
        f"At {settings.fps:g} frames a second:",
        "",
        "| frames x height x width | clips | trimmed: the clip goes on | enlarged: its picture is smaller |",
        "| --- | --- | --- | --- |",
        *[f"| {bucket} | {count[bucket]} | {trimmed[bucket]} | {enlarged[bucket]} |" for bucket in sorted(count)],
        "",
        "A clip is cut off behind its first frames, cropped around its centre to the nearest shape, and resized.",
        "",
        f"![some of the clips as they are used]({SHEET})",
    ]
    if dropped:
        lines += ["", "## Dropped", "", *[f"- {dropped[number]}" for number in sorted(dropped)[:LISTED]]]
        if len(dropped) > LISTED:
            lines.append(f"- and {len(dropped) - LISTED} more, in {TABLE}")
        lines += ["", "Mend or remove them; the same command then encodes what is new."]
    return "\n".join(lines) + "\n"


def _prompts_text(prepared: Prepared, settings: Data) -> str:
    prompts = prepared.want.prompts
    again = len(prompts) - len(set(prompts))
    twice = f", {again} of them repeat another one" if again else ""
    return (
        f"# Prepared prompts\n\n{len(prompts)} prompts of {settings.prompts} are used{twice}; {prepared.new} were "
        "encoded now. There are no clips: the student learns from its own samples alone.\n"
    )


def _table(prepared: Prepared, used: list[Used]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["clip", "used", "frames", "height", "width", "own_height", "own_width", "goes_on", "reason"])
    cells: dict[int, list[object]] = {n: ["no", "", "", "", "", "", "", why] for n, why in prepared.dropped.items()}
    for one in used:
        b, s = one.bucket, one.source
        goes_on = "yes" if s.goes_on else "no"
        cells[one.number] = ["yes", b.frames, b.height, b.width, s.height, s.width, goes_on, ""]
    for number in sorted(cells):
        writer.writerow([prepared.want.clips[number].name, *cells[number]])
    return out.getvalue()


def _sheet(prepared: Prepared, settings: Data, plan: Plan, used: list[Used]) -> Image:
    """Some clips of every shape, evenly spread over the set."""
    shown: list[Used] = []
    buckets = sorted({one.bucket for one in used})[:SHOWN]
    for bucket in buckets:
        members = [one for one in used if one.bucket == bucket]
        places = np.linspace(0, len(members) - 1, min(len(members), SHOWN // len(buckets))).round()
        shown += [members[int(place)] for place in places]
    strips, captions = [], []
    for one in shown:
        clip = prepared.want.clips[one.number]
        video = read_excerpt(clip.path, one.bucket.frames, settings.fps, plan.shape).video
        strips.append(np.concatenate([_thumb(frame) for frame in spread(video, FRAMES)], axis=1))
        captions.append(f"{clip.name} ({one.bucket}): {clip.caption}"[:200])
    height, width = (max(strip.shape[axis] for strip in strips) for axis in (0, 1))
    cells = [[_padded(strip, height, width)] for strip in strips]
    return grid(cells, ["first to last frame, as they are used"], captions)


def _thumb(frame: Image) -> Image:
    """A frame of about the height of a cell."""
    from PIL import Image as Pillow

    if frame.shape[0] <= CELL_HEIGHT:
        return enlarge(frame)
    size = (max(round(frame.shape[1] * CELL_HEIGHT / frame.shape[0]), 1), CELL_HEIGHT)
    return np.asarray(Pillow.fromarray(frame).resize(size, Pillow.Resampling.BOX))


def _padded(picture: Image, height: int, width: int) -> Image:
    page = np.full((height, width, 3), 255, np.uint8)
    page[: picture.shape[0], : picture.shape[1]] = picture
    return page
