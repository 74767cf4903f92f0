"""Tokenizers and image processors from their folders, offline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..hashing import value_hash


def load_tokenizer(place: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        UserError: it can't be read.
    """
    from transformers import AutoTokenizer

    return _read(AutoTokenizer, place)


def load_tokenizer_as_written(place: Path) -> Any:
    """The tokenizer that a folder's tokenizer.json describes, whatever class its config names.

    LLaMA 3's files name the class of LLaMA 2's tokenizer, and some releases of transformers make that one of them.

    Raises:
        UserError: it can't be read.
    """
    from transformers import PreTrainedTokenizerFast

    return _read(PreTrainedTokenizerFast, place)


def _read(made: Any, place: Path) -> Any:
    folder = place.parent if place.is_file() else place
    try:
        return made.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(f"{folder} could not be read as a tokenizer ({error}); copy it again") from error


def words_hash(tokenizer: Any) -> str:
    """A fingerprint of what a tokenizer makes of words; how the last call padded and cut them has no say."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # of single letters, as ByT5's: there are no words but those that were added
        return value_hash([type(tokenizer).__name__, len(tokenizer), tokenizer.get_added_vocab()])
    known = json.loads(backend.to_str())
    return value_hash({key: value for key, value in known.items() if key not in ("padding", "truncation")})


def check_vocabulary(tokenizer: Any, size: int, setting: str) -> None:
    """Whether a text encoder knows every word of a tokenizer.

    Args:
        size: words that the encoder knows.
        setting: that names the tokenizer.

    Raises:
        UserError: it does not.
    """
    if len(tokenizer) > size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} words, the text encoder {size}; "
            f"name the text encoder's own tokenizer in {setting}"
        )


def load_image_processor(folder: Path | None, size: int) -> Any:
    """CLIP's image processor of a folder, or the usual one for pictures of `size` pixels each way.

    Raises:
        UserError: the folder can't be read.
    """
    from transformers import CLIPImageProcessor

    sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return _processor(CLIPImageProcessor, folder, sizes)


def load_siglip_processor(folder: Path | None, size: int) -> Any:
    """SigLIP's image processor of a folder, or the usual one for pictures of `size` pixels each way.

    Raises:
        UserError: the folder can't be read.
    """
    from transformers import SiglipImageProcessor

    return _processor(SiglipImageProcessor, folder, {"size": {"height": size, "width": size}})


def _processor(made: Any, folder: Path | None, sizes: Mapping[str, Any]) -> Any:
    if folder is None:
        return made(**sizes)
    try:
        return made.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} could not be read as an image processor ({error}); copy it again") from error
