"""Clips named and laid out as VBench reads them; scoring them is the official tool's part.

    FOLDER/videos/<prompt>-<index>.mp4   five clips for each prompt, and nothing else
    FOLDER/images/<prompt>.png           the first frames, where clips start from one (VBench-I2V)
    FOLDER/prompts.json                  {file name: prompt}, for vbench evaluate --prompt_file
    FOLDER/about.json                    what made the clips, and the seed of each

Read in VBench's source, not run (github.com/Vchitect/VBench, commit 45e79ec, vbench 0.1.5): the standard suite looks
for exactly `<prompt>-0` to `-4`, with the suffix of whatever file the folder lists first, so that a stray file hides
all clips; `--mode=custom_input` takes prompts from `--prompt_file`, else from the names. A prompt that no file can be
named by (a slash, more than 240 bytes) is written with other characters; the standard suite has none of these. Static
clips are filtered out for `temporal_flickering`, which therefore asks for 25 clips of each of its prompts.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_text
from ..hashing import value_hash
from .networks import Videos

CLIPS = 5  # of each prompt
LONGEST = 240  # bytes of a name before its index; file systems take 255 in all
CUSTOM_DIMENSIONS = (
    "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
    "imaging_quality",
)  # fmt: skip
"""What VBench measures of any clips; its ten other dimensions are for its own prompts."""


@dataclass(frozen=True)
class VBenchClip:
    """One clip to make.

    Attributes:
        prompt: what it shows.
        seed: of its noise; no two clips share one.
        path: its file.
        start: hash of the picture that it starts from, if it does.
    """

    prompt: str
    seed: int
    path: Path
    start: str = ""


def file_stems(prompts: Sequence[str]) -> dict[str, str]:
    """A file name without index for each different prompt: the prompt itself wherever a file can be named so.

    Names may differ in capitals alone, as two of the standard suite do; Windows and macOS keep one file for both.

    Raises:
        UserError: no prompt, or an empty one.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for prompt in dict.fromkeys(text.strip() for text in prompts):
        if not prompt:
            raise UserError("one of the prompts for VBench is empty; give each clip a prompt")
        stem = _cut(re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", prompt), LONGEST)
        if stem in taken:
            stem = f"{_cut(stem, LONGEST - 9)} {value_hash(prompt)[:8]}"
        taken.add(stem)
        found[prompt] = stem
    if not found:
        raise UserError("there is no prompt for VBench; give a file with one in each line")
    return found


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def lay_out(prompts: Sequence[str], folder: Path, seed: int = 0, count: int = CLIPS) -> list[VBenchClip]:
    """The clips to make: `count` of each different prompt, with seeds from `seed` on.

    Raises:
        UserError: no prompt, or an empty one.
    """
    stems = file_stems(prompts)
    return [
        VBenchClip(prompt, seed + number * count + index, folder / "videos" / f"{stem}-{index}.mp4")
        for number, (prompt, stem) in enumerate(stems.items())
        for index in range(count)
    ]


def begin(folder: Path, clips: Sequence[VBenchClip], made_by: Mapping[str, str]) -> list[VBenchClip]:
    """Write down what the folder will hold, and tell which clips are still to be made.

    A stopped run goes on where it was; more prompts may join those that are there.

    Args:
        folder: of `lay_out`.
        clips: from there.
        made_by: model, steps, size: whatever makes the clips of one folder comparable.

    Raises:
        UserError: the folder holds clips of another model, of other prompts or seeds, or files that are no clips of it.
    """
    record, videos = folder / "about.json", folder / "videos"
    known = _read(record)
    if known and known["made_by"] != made_by:
        raise UserError(f"{folder} holds clips that something else has made ({record.name} says what); choose another")
    noted: dict[str, dict[str, str | int]] = dict(known["clips"]) if known else {}
    for clip in clips:
        entry: dict[str, str | int] = {"prompt": clip.prompt, "seed": clip.seed}
        if clip.start:
            entry["start"] = clip.start
        if noted.setdefault(clip.path.name, entry) != entry:
            raise UserError(
                f"{clip.path} stands for another prompt, seed or first frame ({record.name} says which); choose "
                "another folder"
            )
    strange = [path.name for path in videos.glob("*") if path.name not in noted and not path.name.startswith(".")]
    if strange:
        raise UserError(f"{videos} holds {min(strange)}, which VBench would stumble over; choose another folder")
    text = json.dumps({"made_by": dict(made_by), "clips": noted}, indent=2, ensure_ascii=False)
    prompts = {name: entry["prompt"] for name, entry in noted.items()}
    videos.mkdir(parents=True, exist_ok=True)
    write_text(folder / "prompts.json", json.dumps(prompts, indent=2, ensure_ascii=False) + "\n")
    write_text(record, text + "\n")
    return [clip for clip in clips if not clip.path.exists()]


def _read(record: Path) -> dict[str, Any] | None:
    if not record.exists():
        return None
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        good = isinstance(found["made_by"], dict) and isinstance(found["clips"], dict)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{record} can't be read ({error}); choose another folder") from error
    if not good:
        raise UserError(f"{record} does not tell what the folder holds; choose another folder")
    return dict(found)


def write_first_frame(folder: Path, prompt: str, prompts: Sequence[str], frame: Videos) -> Path:
    """Write the picture uint8 (H, W, 3) that the clips of a prompt start from; VBench-I2V takes one for each prompt.

    Args:
        folder: of `lay_out`.
        prompt: one of `prompts`.
        prompts: those of `lay_out`.
        frame: the picture.
    """
    from ..data.video import write_png

    path = folder / "images" / f"{file_stems(prompts)[prompt.strip()]}.png"
    write_png(path, frame)
    return path


def how_to_score(folder: Path) -> str:
    """The commands of the official tool for a folder, for a person to run where VBench is installed."""
    videos, prompts = shlex.quote(str(folder / "videos")), shlex.quote(str(folder / "prompts.json"))
    lines = [
        "for dimension in " + " ".join(CUSTOM_DIMENSIONS) + "; do",
        f"  vbench evaluate --mode=custom_input --videos_path {videos} --prompt_file {prompts} --dimension $dimension",
        "done",
    ]
    return "\n".join(lines)
