"""Fingerprints of model files that are too large to load for it: their sizes, their heads, and evenly spaced pieces."""

from __future__ import annotations

import hashlib
from pathlib import Path

WHOLE = 4 << 20  # bytes up to which a file is read whole: configs, tokenizers
HEAD = 1 << 20  # bytes from the start of a larger one: the names, types and shapes of its tensors
PIECES, PIECE = 256, 4096  # of the rest
SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja")


def print_of_files(place: Path) -> str:
    """Of a file, or of the model files in a folder; 16 characters. Where they lie does not count.

    It tells models apart. A file in which somebody changed a few bytes by hand may keep its fingerprint.
    """
    names = sorted(p for p in place.iterdir() if p.suffix in SUFFIXES and p.is_file()) if place.is_dir() else [place]
    digest = hashlib.sha256()
    for path in names:
        size = path.stat().st_size
        digest.update(f"{path.name if place.is_dir() else ''} {size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
                continue
            digest.update(file.read(HEAD))
            for index in range(PIECES):
                file.seek(HEAD + (size - HEAD - PIECE) * index // (PIECES - 1))
                digest.update(file.read(PIECE))
    return digest.hexdigest()[:16]
