"""Files that a node reads or writes: by name, inside ComfyUI's own folders and nowhere else.

Links: people keep models in one place and link them into `models/`, so a model file that ComfyUI lists is read wherever
its links lead. Nothing is written through a link that leads out of its folder, and nothing in the input and output
folders is read through one.
"""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

from ..w2svd_core.errors import UserError

NONE = "none"  # the choice of a list that names no file
LORAS = "loras"
SUFFIX = ".safetensors"
NOT_NAMES = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))})
PORTRAITS = "portraits"  # the folder of clips that is drawn, not read


def lora_names() -> list[str]:
    """What a list of LoRA files offers: none, then the safetensors files in ComfyUI's LoRA folders."""
    import folder_paths

    return [NONE, *(name for name in folder_paths.get_filename_list(LORAS) if name.endswith(SUFFIX))]


def lora_file(name: str) -> Path:
    """The file that a name of `lora_names` means.

    Raises:
        UserError: none is chosen, or there is no such file in ComfyUI's LoRA folders.
    """
    import folder_paths

    if name in ("", NONE):
        raise UserError("no LoRA file is chosen; put one into models/loras and choose it in the node")
    found = folder_paths.get_full_path(LORAS, name) if name in lora_names() else None
    if found is None:
        raise UserError(f"models/loras holds no LoRA {name}; put the .safetensors file there and choose it in the node")
    return Path(found)


def lora_stamp(name: str | None) -> str:
    """Changes when the file does, so that a node that has read it runs again; "" for no file."""
    try:
        return stamp_of(lora_file(name or NONE))
    except UserError:
        return ""


def input_stamp(name: str | None) -> str:
    """Changes when a file in a folder of ComfyUI's input folder does; "" for no folder, and for drawn clips."""
    try:
        return "" if name in (None, "", PORTRAITS) else stamp_of(folder_in("input", str(name)))
    except UserError:
        return ""


def stamp_of(path: Path) -> str:
    """Changes when a file does, or any file in a folder: names, times and sizes; "" where there is nothing."""
    from ..w2svd_core.hashing import value_hash

    files = (
        [path] if path.is_file() else sorted(Path(place, name) for place, _, names in os.walk(path) for name in names)
    )
    found = [[str(file), about.st_mtime_ns, about.st_size] for file in files if (about := _stat(file)) is not None]
    return value_hash(found) if found else ""


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # gone by now, or a link to nothing
        return None


def new_lora_file(name: str, replace: bool) -> Path:
    """Where a LoRA of this name is to be written: in ComfyUI's first LoRA folder.

    Args:
        name: may begin with folders, and may end in .safetensors.
        replace: take the place of a file that is there already; otherwise a number is added to the name.

    Raises:
        UserError: as `inside`, or a folder has this name.
    """
    import folder_paths

    root = Path(folder_paths.get_folder_paths(LORAS)[0])
    path = _named(root, name.strip().removesuffix(SUFFIX) + SUFFIX)
    stem, number = path.stem, 1
    while not replace and os.path.lexists(path):
        number += 1
        path = path.with_name(f"{stem}_{number}{SUFFIX}")
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{name!r} is a folder in {root.name}; write another name")
    return _kept_in(root, path, name)


def folder_in(kind: str, name: str) -> Path:
    """An existing folder inside ComfyUI's input or output folder.

    Raises:
        UserError: as `inside`, there is none, or a link in it leads out.
    """
    import folder_paths

    root = Path(folder_paths.get_input_directory() if kind == "input" else folder_paths.get_output_directory())
    path = inside(root, name)
    if not path.is_dir():
        raise UserError(f"ComfyUI's {kind} folder holds no folder {name}; check its name")
    _check_links(root, path)
    return path


def run_folder(name: str) -> Path:
    """The run folder of a name: in ComfyUI's output folder, whether it is there or not.

    Raises:
        UserError: as `inside`, a file has this name, or a link in it leads out.
    """
    import folder_paths

    output = Path(folder_paths.get_output_directory())
    path = _kept_in(output, inside(output / "w2svd", name), name)
    if path.exists() and not path.is_dir():
        raise UserError(f"{name!r} is a file in output/w2svd; give the run another name")
    _check_links(output, path)
    return path


def inside(folder: Path, name: str) -> Path:
    """A file in a folder, by a name that may begin with folders.

    Raises:
        UserError: the name is empty or absolute, or leads out of the folder, be it by dots or by a link.
    """
    return _kept_in(folder, _named(folder, name), name)


def _named(folder: Path, name: str) -> Path:
    """As `inside`, by the name alone."""
    parts = PureWindowsPath(name.strip())  # it takes both kinds of slashes, and knows drives
    stem = parts.name.removesuffix(SUFFIX)
    plain = name.strip().isprintable() and not any(sign in name for sign in ':*?"<>|')
    if parts.anchor or ".." in parts.parts:
        raise UserError(f"{name!r} leads out of {folder.name}; write a name without .. or a leading slash")
    if not plain or not stem.strip(". ") or any(part.split(".")[0].upper() in NOT_NAMES for part in parts.parts):
        raise UserError(f"{name!r} is no name for a file; write letters and digits, such as portraits/four_steps")
    return folder.joinpath(*parts.parts)


def _kept_in(folder: Path, path: Path, name: str) -> Path:
    """The path, if no link leads it out of the folder."""
    if not _stays(folder, path):
        raise UserError(f"{name!r} leads out of {folder.name} by a link; write another name, or take the link away")
    return path


def _check_links(root: Path, folder: Path) -> None:
    """Refuse a link anywhere in a folder that leads out of the root."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not _stays(root, path):
                shown = path.relative_to(root).as_posix()
                raise UserError(f"the link {shown} leads out of {root.name}; put what it points to there instead")


def _stays(folder: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False
