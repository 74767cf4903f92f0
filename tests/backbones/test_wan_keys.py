"""Names of Wan: every parameter both ways, diffusers' own converter as the witness, unknown names refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from w2svd_core.backbones import wan_keys
from w2svd_core.errors import UserError

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "cross_attn_norm": True,
}
IMAGE = {"in_channels": 36, "image_dim": 16, "added_kv_proj_dim": 24}


def tiny(**changes: Any) -> torch.nn.Module:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(**{**TINY, **changes}).eval()
    for parameter in model.parameters():  # norms start at 1: make every tensor its own, so that a swap shows
        parameter.data = torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("changes", [{}, IMAGE], ids=["t2v", "i2v"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_native_file_loads_bit_equal_in_diffusers(tmp_path: Path, changes: dict[str, Any], prefix: str) -> None:
    from diffusers import WanTransformer3DModel

    model = tiny(**changes)
    native = wan_keys.to_native(model.state_dict(), prefix)
    save_file({name: tensor.contiguous() for name, tensor in native.items()}, tmp_path / "wan.safetensors")
    model.save_config(tmp_path)

    loaded = WanTransformer3DModel.from_single_file(str(tmp_path / "wan.safetensors"), config=str(tmp_path))
    ours = wan_keys.from_native(native)
    assert set(loaded.state_dict()) == set(ours) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert ours[name] is native[prefix + wan_keys.to_native({name: tensor}).popitem()[0]]


def test_vace_and_first_last_frame_names() -> None:
    from diffusers import WanVACETransformer3DModel

    config = {**TINY, "vace_layers": [0], "vace_in_channels": 96}
    with torch.device("meta"):
        names = WanVACETransformer3DModel(**config).state_dict()
        first_last = tiny_names(pos_embed_seq_len=4, **IMAGE)
    native = wan_keys.to_native(names)
    assert {"vace_blocks.0.before_proj.weight", "vace_blocks.0.after_proj.bias", "head.head.weight"} <= set(native)
    assert set(wan_keys.from_native(native)) == set(names)
    assert "img_emb.emb_pos" in wan_keys.to_native(first_last)


def tiny_names(**changes: Any) -> dict[str, torch.Tensor]:
    from diffusers import WanTransformer3DModel

    state: dict[str, torch.Tensor] = WanTransformer3DModel(**{**TINY, **changes}).state_dict()
    return state


@pytest.mark.parametrize(
    ("ours", "native"),
    [
        ("blocks.0.attn1.to_q", "blocks.0.self_attn.q"),
        ("blocks.39.attn2.to_out.0", "blocks.39.cross_attn.o"),
        ("blocks.1.attn2.add_k_proj", "blocks.1.cross_attn.k_img"),
        ("blocks.1.ffn.net.0.proj", "blocks.1.ffn.0"),
        ("blocks.1.ffn.net.2", "blocks.1.ffn.2"),
        ("blocks.1.norm2", "blocks.1.norm3"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        ("proj_out", "head.head"),
    ],
)
def test_modules_both_ways(ours: str, native: str) -> None:
    assert wan_keys.native_module(ours) == native
    assert wan_keys.diffusers_module(native) == ours


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"double_blocks\.0\.img_attn_qkv"):
        wan_keys.diffusers_module("double_blocks.0.img_attn_qkv")
    with pytest.raises(UserError, match=r"blocks\.0\.attn3\.to_q"):
        wan_keys.native_module("blocks.0.attn3.to_q")
    with pytest.raises(UserError, match="parameter"):
        wan_keys.from_native({"lm_head.weight": torch.zeros(1)})
    twice = {"head.modulation": torch.zeros(1), "diffusion_model.head.modulation": torch.zeros(1)}
    with pytest.raises(UserError, match="twice"):
        wan_keys.from_native(twice)


@pytest.mark.parametrize("key", ["scaled_fp8", "model.diffusion_model.blocks.0.ffn.0.scale_weight"])
def test_scaled_weights_are_refused(key: str) -> None:
    with pytest.raises(UserError, match="scaled weights"):
        wan_keys.from_native({key: torch.zeros(1)})


def test_padding_the_text_width_keeps_the_output() -> None:
    model = tiny()
    wide = tiny(text_dim=4096)
    native = wan_keys.to_native(model.state_dict())
    padded = wan_keys.pad_text_dim(native)
    assert padded["text_embedding.0.weight"].shape == (24, 4096)
    assert native["text_embedding.0.weight"].shape == (24, 16)
    wide.load_state_dict(wan_keys.from_native(padded))
    assert set(wan_keys.pad_text_dim(model.state_dict())) == set(model.state_dict())

    text = torch.randn(1, 5, 16)
    video, time = torch.randn(1, 16, 1, 4, 4), torch.tensor([500.0])
    with torch.no_grad():
        narrow_out = model(video, time, text, return_dict=False)[0]
        wide_out = wide(video, time, torch.nn.functional.pad(text, (0, 4080)), return_dict=False)[0]
    assert (narrow_out - wide_out).abs().max() <= 1e-4 * narrow_out.abs().max()
    with pytest.raises(UserError, match="more than 8"):
        wan_keys.pad_text_dim(native, 8)
    with pytest.raises(UserError, match="no text projection"):
        wan_keys.pad_text_dim({})
