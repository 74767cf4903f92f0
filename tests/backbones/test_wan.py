"""Wan on disk: folders that diffusers reads, and configs that are told from whole ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Architecture
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors, write_safetensors

WAN = backbone("wan")


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = WAN.build(Architecture(heads=2, head_dim=12, ffn_dim=32, layers=2, text_dim=16))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    WAN.save_folder(tiny(), tmp_path / "wan", torch.float32)
    return tmp_path / "wan"


@pytest.fixture
def native(tmp_path: Path) -> Path:
    model = tiny()
    write_safetensors(tmp_path / "wan.safetensors", WAN.native_state(model), WAN.native_metadata(model))
    return tmp_path / "wan.safetensors"


def test_a_folder_does_not_say_where_its_model_came_from(folder: Path, tmp_path: Path) -> None:
    model = WAN.load(folder, torch.float32)
    WAN.save_folder(model, tmp_path / "again", torch.float32)
    text = (tmp_path / "again" / "config.json").read_text()
    assert text == (folder / "config.json").read_text() and str(tmp_path) not in text
    assert str(tmp_path) not in WAN.native_metadata(model)["config"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folder_and_native_file_load_alike(folder: Path, native: Path, dtype: torch.dtype) -> None:
    one, two = (WAN.load(path, dtype).state_dict() for path in (folder, native))
    assert one.keys() == two.keys()
    assert all(one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one)


BROKEN: list[tuple[Any, str]] = [
    (b"{", r"is not JSON"),
    (b"", r"is not JSON"),
    (b"\xff\xfe\xfd", r"is not JSON"),
    (b"[" * 100_000, r"is not JSON"),
    (b"[1, 2]", r"is not a JSON object"),
    (b"null", r"is not a JSON object"),
    ({"window_size": [7, 7], "zeta": 1}, r"keys that a WanTransformer3DModel does not take \(window_size, zeta\)"),
    ({"num_layers": None, "text_dim": None}, r"lacks text_dim, num_layers"),
    ({"num_layers": "two"}, r"gives num_layers as 'two'"),
    ({"num_layers": True}, r"gives num_layers as True"),
    ({"num_attention_heads": 0}, r"gives num_attention_heads as 0"),
    ({"ffn_dim": 32.0}, r"gives ffn_dim as 32\.0"),
    ({"patch_size": [1, 2]}, r"gives patch_size as \[1, 2\]"),
    ({"patch_size": 2}, r"gives patch_size as 2"),
    ({"eps": "small"}, r"gives eps as 'small'"),
    ({"image_dim": "x"}, r"gives image_dim as 'x'"),
    ({"cross_attn_norm": 1}, r"gives cross_attn_norm as 1"),
    ({"qk_norm": 1}, r"gives qk_norm as 1"),
    ({"num_layers": 3}, r"does not hold the Wan model|could not be read"),
    ({"num_layers": 1}, r"does not hold the Wan model|could not be read"),
    ({"ffn_dim": 64}, r"does not hold the Wan model|could not be read"),
]


def broken(config: Any, whole: dict[str, Any]) -> bytes:
    """The text of a config: as given, or the whole one with changes; None takes a key out."""
    if isinstance(config, bytes):
        return config
    changed = {key: value for key, value in (whole | config).items() if config.get(key, 0) is not None}
    return json.dumps(changed).encode()


def name_of(config: object) -> str:
    return str(config)[:40]


@pytest.mark.parametrize(("config", "words"), BROKEN, ids=name_of)
def test_a_broken_config_of_a_folder_is_one_sentence(folder: Path, config: Any, words: str) -> None:
    place = folder / "config.json"
    place.write_bytes(broken(config, json.loads(place.read_text())))
    with pytest.raises(UserError, match=rf"{folder}.*({words})"):
        WAN.load(folder, torch.float32)


@pytest.mark.parametrize(
    ("config", "words"), [(c, w) for c, w in BROKEN if c != b"\xff\xfe\xfd"], ids=name_of  # a header is UTF-8
)  # fmt: skip
def test_a_broken_config_of_a_native_file_is_one_sentence(native: Path, config: Any, words: str) -> None:
    state, strings = read_safetensors(native)
    text = broken(config, json.loads(strings["config"])).decode()
    write_safetensors(native, state, {"config": text})
    with pytest.raises(UserError, match=rf"{native}.*({words})"):
        WAN.load(native, torch.float32)


@pytest.mark.parametrize("name", [None, "CogVideoXTransformer3DModel", 3])
def test_a_folder_of_another_class_is_refused(folder: Path, name: Any) -> None:
    place = folder / "config.json"
    place.write_bytes(broken({"_class_name": name}, json.loads(place.read_text())))
    with pytest.raises(UserError, match="is not a diffusers folder of a WanTransformer3DModel"):
        WAN.load(folder, torch.float32)
    place.unlink()
    with pytest.raises(UserError, match="is not a diffusers folder of a WanTransformer3DModel"):
        WAN.load(folder, torch.float32)


def test_what_published_configs_leave_out_has_a_default(folder: Path) -> None:
    place = folder / "config.json"
    place.write_bytes(broken({"pos_embed_seq_len": None, "qk_norm": None}, json.loads(place.read_text())))
    assert WAN.load(folder, torch.float32).config.qk_norm == "rms_norm_across_heads"


def test_a_native_file_of_others_is_told_what_it_lacks(native: Path) -> None:
    write_safetensors(native, read_safetensors(native)[0])
    with pytest.raises(UserError, match="does not say its architecture"):
        WAN.load(native, torch.float32)
