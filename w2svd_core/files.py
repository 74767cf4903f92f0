"""Files that are either whole or not there: atomic writes, and safetensors with errors that a person can read."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError, out_of_memory


@contextlib.contextmanager
def atomic_write(path: Path, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; on success it becomes `path`, on failure it is removed.

    Args:
        durable: wait until the disk has it (for checkpoints; thousands of small clips would take minutes).

    Raises:
        UserError: the disk is full, or the folder can't be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=path.suffix)
    except OSError as error:
        raise UserError(_cannot_write(path, error)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with temporary.open("r+b") as stream:  # Windows flushes only what may be written
                os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise UserError(_cannot_write(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; on success it takes the place of `path`, on failure it is removed.

    A crash between the two renames leaves the older folder under its hidden name; the next call puts it back.

    Raises:
        UserError: the disk is full, or the folder can't be written; what was at `path` is still there.
    """
    from safetensors import SafetensorError

    fresh, older = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if older.exists() and not path.exists():
            older.rename(path)
        for left in filter(Path.exists, (fresh, older)):
            shutil.rmtree(left)
        fresh.mkdir()
        yield fresh
        for file in filter(Path.is_file, fresh.rglob("*")):
            with file.open("r+b") as stream:
                os.fsync(stream.fileno())
        if path.exists():
            path.rename(older)
        fresh.rename(path)
    except (OSError, SafetensorError) as error:
        raise UserError(_cannot_write(path, error)) from error
    finally:
        if older.exists() and not path.exists():
            older.rename(path)
        for left in (fresh, older):
            shutil.rmtree(left, ignore_errors=True)


def _cannot_write(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"cannot write {path}: {reason}; free some space or choose another folder, nothing before it was lost"


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_new_text(path: Path, text: str) -> None:
    """Write UTF-8 text as a new file: of two that try at once one alone succeeds.

    Raises:
        FileExistsError: it is there already.
        UserError: it can't be written; nothing is left of it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("x", encoding="utf-8")
    except OSError as error:
        if isinstance(error, FileExistsError) and path.exists():
            raise
        raise UserError(_cannot_write(path, error)) from error
    try:
        with stream:
            stream.write(text)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(_cannot_write(path, error)) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and string metadata atomically as one safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_write(path, durable=True) as temporary:
            save_file(_apart(tensors), temporary, dict(metadata or {}))
    except SafetensorError as error:
        raise UserError(_cannot_write(path, error)) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and no two in the same memory, which safetensors refuses."""
    out: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        out[name] = value.clone() if place in taken else value
        taken.add(place)
    return out


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a whole safetensors file onto the CPU.

    Returns:
        The tensors by name, and the file's metadata.

    Raises:
        UserError: the file is missing, truncated, or not safetensors (a pickle, for example).
    """
    with opened_safetensors(path) as file:
        # a copy of each lies at an aligned address, where matrix products round the same in every process
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        return tensors, dict(file.metadata() or {})


@contextlib.contextmanager
def opened_safetensors(path: Path) -> Iterator[Any]:
    """Give safetensors' own handle of a file, which reads tensor by tensor from mapped memory.

    Raises:
        UserError: the file is missing, truncated, or not safetensors (a pickle, for example).
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the .safetensors file in it")
    if not path.is_file():
        raise UserError(f"{path} is not there; check the path")
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}; check its permissions") from error
    if head[:4] == b"GGUF":
        raise UserError(f"{path} is a GGUF file, whose weights are quantised; use the bf16, fp16 or plain fp8 file")
    if head[8:9] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):  # byte 8 opens every safetensors header
        raise UserError(
            f"{path} is a pickled file, which can run code when it is read; convert it to .safetensors first"
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def dtype_named(precision: str) -> torch.dtype:
    """The torch dtype of a precision setting ("fp32", "bf16", "fp16")."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
