"""What the encoders of a Wan are known by. Preparing: `test_sources`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_wan import TinyWan, tiny_wan

from w2svd_core.backbones.wan_config import config_at
from w2svd_core.backbones.wan_source import WanSource
from w2svd_core.data.file_prints import print_of_files
from w2svd_core.errors import UserError


def source_of(tiny: TinyWan, **changes: Any) -> WanSource:
    return WanSource(tiny.model(), config_at(tiny.folder), **{"text_dtype": torch.float32, **changes})


def test_what_a_fingerprint_follows(tmp_path: Path) -> None:
    tiny = tiny_wan("ti2v")
    first = source_of(tiny).fingerprints()
    assert source_of(tiny, first_frame=False).fingerprints() == {**first, "start": ""}
    assert source_of(tiny, text_dtype=torch.bfloat16).fingerprints()["text"] != first["text"]
    large = bytearray(6 << 20)
    path = tmp_path / "weights.safetensors"
    seen = set()
    for place in (None, 3, (1 << 20) + 5, len(large) - 1):  # in the head, in the first piece, in the last
        if place is not None:
            large[place] = 1
        path.write_bytes(large)
        seen.add(print_of_files(path))
    assert len(seen) == 4


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a diffusers folder .* or a \.safetensors file of a Wan model"):
        config_at(tmp_path)
    tiny = tiny_wan("t2v")
    with pytest.raises(UserError, match="the model's VAE is not there"):
        WanSource(tiny.model(path=str(tmp_path)), config_at(tiny.folder)).fingerprints()
