"""Files that a node reads or writes: by name, inside ComfyUI's own folders and nowhere else."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from ..w2svd_core.errors import UserError

NONE = "none"  # the choice of a list that names no file
LORAS = "loras"
SUFFIX = ".safetensors"


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
        about = lora_file(name or NONE).stat()
    except (UserError, OSError):
        return ""
    return f"{name} {about.st_mtime_ns} {about.st_size}"


def new_lora_file(name: str, replace: bool) -> Path:
    """Where a LoRA of this name is to be written: in ComfyUI's first LoRA folder.

    Args:
        name: may begin with folders, and may end in .safetensors.
        replace: take the place of a file that is there already; otherwise a number is added to the name.

    Raises:
        UserError: as `inside`.
    """
    import folder_paths

    path = inside(Path(folder_paths.get_folder_paths(LORAS)[0]), name.removesuffix(SUFFIX) + SUFFIX)
    stem, number = path.stem, 1
    while path.exists() and not replace:
        number += 1
        path = path.with_name(f"{stem}_{number}{SUFFIX}")
    return path


def folder_in(kind: str, name: str) -> Path:
    """An existing folder inside ComfyUI's input or output folder.

    Raises:
        UserError: as `inside`, or there is none.
    """
    import folder_paths

    root = Path(folder_paths.get_input_directory() if kind == "input" else folder_paths.get_output_directory())
    path = inside(root, name)
    if not path.is_dir():
        raise UserError(f"ComfyUI's {kind} folder holds no folder {name}; check its name")
    return path


def run_folder(name: str) -> Path:
    """The run folder of a name: in ComfyUI's output folder, whether it is there or not.

    Raises:
        UserError: as `inside`.
    """
    import folder_paths

    return inside(Path(folder_paths.get_output_directory()) / "w2svd", name)


def inside(folder: Path, name: str) -> Path:
    """A file in a folder, by a name that may begin with folders.

    Raises:
        UserError: the name is empty or absolute, or leads out of the folder, be it by dots or by a link.
    """
    parts = PureWindowsPath(name.strip())  # it takes both kinds of slashes, and knows drives
    stem = parts.name.removesuffix(SUFFIX)
    if not stem.strip(". ") or any(sign in name for sign in '\0:*?"<>|'):
        raise UserError(f"{name!r} is no name for a file; write letters and digits, such as portraits/four_steps")
    path = folder.joinpath(*parts.parts) if not parts.anchor and ".." not in parts.parts else None
    if path is None or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{name!r} leads out of {folder.name}; write a name without .. or a leading slash")
    return path
