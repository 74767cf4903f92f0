"""Names of HunyuanVideo: every parameter both ways, diffusers' own converter as the witness, unknown names refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hunyuan_kinds import new_hunyuan
from safetensors.torch import save_file
from torch import Tensor

from w2svd_core.backbones import backbone, hunyuan_keys
from w2svd_core.backbones.hunyuan_variants import VARIANTS, recognised
from w2svd_core.backbones.key_parts import Part, split, stack
from w2svd_core.backbones.published import Published, published_config
from w2svd_core.errors import UserError

HUNYUAN = backbone("hunyuan_video")


def told_apart(**changes: Any) -> torch.nn.Module:
    """The smallest model with every tensor its own, so that a swap shows: norms start at 1, and biases at 0."""
    model = new_hunyuan(**changes)
    rng = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    return model


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers as converter

    found: dict[str, Tensor] = converter(dict(state))  # type: ignore[no-untyped-call]
    return found


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.config)
def test_every_name_and_shape_of_a_published_model_is_what_diffusers_reads(variant: Published) -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    config = published_config(variant)
    assert recognised(config) == variant
    with torch.device("meta"):
        state = HunyuanVideoTransformer3DModel.from_config(dict(config)).state_dict()
    native = hunyuan_keys.to_native(state)
    assert len(native) == len(state) - 2 * (20 * 4 + 40 * 3 + 2 * 2)  # q, k, v (and mlp) have one layer
    assert native["single_blocks.39.linear1.weight"].shape == (3 * 3072 + 12288, 3072)
    found = convert(native)
    assert {name: weight.shape for name, weight in found.items()} == {name: w.shape for name, w in state.items()}
    assert hunyuan_keys.diffusers_names(native).keys() == state.keys()


def test_numbers_are_where_diffusers_finds_them() -> None:
    model = told_apart(num_single_layers=0)  # diffusers takes single blocks for 3072 wide
    found = convert(hunyuan_keys.to_native(model.state_dict()))
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())


def test_a_single_block_has_q_k_v_and_the_feed_forward_in_one_layer() -> None:
    state = told_apart().state_dict()
    native = hunyuan_keys.to_native(state)
    place = "single_transformer_blocks.0."
    parts = [state[f"{place}{name}.weight"] for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert torch.equal(native["single_blocks.0.linear1.weight"], torch.cat(parts))
    assert torch.equal(native["single_blocks.0.linear2.weight"], state[f"{place}proj_out.weight"])


def test_the_last_modulation_has_its_halves_the_other_way_round() -> None:
    state = told_apart().state_dict()
    scale, shift = state["norm_out.linear.weight"].chunk(2)
    native = hunyuan_keys.to_native(state)
    assert torch.equal(native["final_layer.adaLN_modulation.1.weight"], torch.cat([shift, scale]))
    refiner = "context_embedder.token_refiner.refiner_blocks.0.norm_out.linear.weight"
    kept = native["txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.weight"]
    assert torch.equal(kept, state[refiner])


def as_comfyui_calls_it(name: str) -> str:
    """The replacements that ComfyUI itself makes of Tencent's names before it loads them (0.3.64)."""
    for theirs, own in (
        ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
        ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
        ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
        ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
        ("_mod.linear.", "_mod.lin."),
        ("_attn_qkv.", "_attn.qkv."),
        ("mlp.fc1.", "mlp.0."),
        ("mlp.fc2.", "mlp.2."),
        ("_attn_q_norm.weight", "_attn.norm.query_norm.scale"),
        ("_attn_k_norm.weight", "_attn.norm.key_norm.scale"),
        (".q_norm.weight", ".norm.query_norm.scale"),
        (".k_norm.weight", ".norm.key_norm.scale"),
        ("_attn_proj.", "_attn.proj."),
        (".modulation.linear.", ".modulation.lin."),
        ("_in.mlp.2.", "_in.out_layer."),
        ("_in.mlp.0.", "_in.in_layer."),
    ):
        name = name.replace(theirs, own)
    return name


@pytest.mark.parametrize("prefix", ["", "model.model.", "model.diffusion_model."])
@pytest.mark.parametrize("norm", ["scale", "weight"])
def test_a_file_that_comfyui_saved_loads(prefix: str, norm: str, tmp_path: Path) -> None:
    model = told_apart(attention_head_dim=128, num_attention_heads=1, rope_axes_dim=(16, 56, 56))
    native = {as_comfyui_calls_it(n): w for n, w in hunyuan_keys.to_native(model.state_dict()).items()}
    assert "double_blocks.0.img_attn.qkv.weight" in native and "single_blocks.0.norm.key_norm.scale" in native
    renamed = {prefix + name.replace("_norm.scale", f"_norm.{norm}"): w.contiguous() for name, w in native.items()}
    save_file(renamed, tmp_path / "saved.safetensors")
    found = HUNYUAN.load(tmp_path / "saved.safetensors", torch.float32).state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("ours", "native"),
    [
        ("transformer_blocks.0.attn.to_q", "double_blocks.0.img_attn_qkv"),
        ("transformer_blocks.19.attn.add_v_proj", "double_blocks.19.txt_attn_qkv"),
        ("transformer_blocks.1.attn.to_out.0", "double_blocks.1.img_attn_proj"),
        ("transformer_blocks.1.attn.to_add_out", "double_blocks.1.txt_attn_proj"),
        ("transformer_blocks.1.ff_context.net.0.proj", "double_blocks.1.txt_mlp.fc1"),
        ("transformer_blocks.1.norm1.linear", "double_blocks.1.img_mod.linear"),
        ("transformer_blocks.1.attn.norm_added_k", "double_blocks.1.txt_attn.norm.key_norm"),
        ("single_transformer_blocks.39.proj_mlp", "single_blocks.39.linear1"),
        ("single_transformer_blocks.0.proj_out", "single_blocks.0.linear2"),
        ("single_transformer_blocks.0.norm.linear", "single_blocks.0.modulation.linear"),
        ("context_embedder.token_refiner.refiner_blocks.1.norm1", "txt_in.individual_token_refiner.blocks.1.norm1"),
        ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
        ("norm_out.linear", "final_layer.adaLN_modulation.1"),
        ("proj_out", "final_layer.linear"),
    ],
)  # fmt: skip
def test_modules_both_ways(ours: str, native: str) -> None:
    """In LoRA files: Tencent's names, and ComfyUI's own where its LoRA reader knows no others."""
    assert hunyuan_keys.native_module(ours) == native
    assert ours in [part.module for part in hunyuan_keys.parts(native)]
    flat = "lora_unet_" + native.replace(".", "_")
    assert hunyuan_keys.parts(flat) == hunyuan_keys.parts(native)


def test_every_module_of_a_model_has_its_place() -> None:
    model = new_hunyuan()
    own = {name.rsplit(".", 1)[0] for name, _ in model.named_parameters()}
    for name in own:
        parts = hunyuan_keys.parts(hunyuan_keys.native_module(name))
        assert name in [part.module for part in parts]
        assert {hunyuan_keys.native_module(part.module) for part in parts} == {hunyuan_keys.native_module(name)}


@pytest.mark.parametrize(
    "name", ["blocks.0.self_attn.q", "double_blocks.img_attn_qkv", "double_blocks.0.linear1", "img_in", "lora_unet_x"]
)
def test_unknown_native_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is not a module of the native HunyuanVideo"):
        hunyuan_keys.parts(name)


@pytest.mark.parametrize(
    "name",
    ["blocks.0.attn1.to_q", "transformer_blocks.attn.to_q", "transformer_blocks.0.attn.to_x", "transformer_blocks.0."],
)
def test_unknown_names_of_diffusers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is not a module of diffusers' HunyuanVideo"):
        hunyuan_keys.native_module(name)


def test_a_name_that_is_there_twice_or_scaled_is_refused() -> None:
    with pytest.raises(UserError, match=r"holds proj_out\.weight twice, as final_layer"):
        hunyuan_keys.diffusers_names(["final_layer.linear.weight", "model.model.final_layer.linear.weight"])
    with pytest.raises(UserError, match=r"to_q\.weight twice"):
        hunyuan_keys.diffusers_names(["double_blocks.0.img_attn_qkv.weight", "double_blocks.0.img_attn.qkv.weight"])
    with pytest.raises(UserError, match="scaled"):
        hunyuan_keys.diffusers_names(["img_in.proj.weight", "scaled_fp8"])


def test_layers_of_other_sizes_are_one_sentence() -> None:
    parts = (Part("q", 1), Part("k", 1), Part("mlp", 4))
    with pytest.raises(UserError, match=r"12 outputs and 6 inputs can't hold q, k, mlp"):
        split(parts, torch.zeros(12, 6))
    with pytest.raises(UserError, match=r"k has 5 outputs and 6 inputs"):
        stack(parts, {"k": torch.zeros(5, 6)}, 6)
    wide = {"q": torch.ones(6, 2), "mlp": torch.ones(9, 2)}  # another ratio than the usual
    found = stack(parts, wide, 6)
    assert found.shape == (21, 2) and not found[6:12].any()
    assert {name: len(rows) for name, rows in split(parts, found, 6).items()} == {"q": 6, "k": 6, "mlp": 9}
