"""Files of Stable Diffusion 1.5's own names, written here from a real tiny UNet of its form."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from w2svd_core.backbones import backbone
from w2svd_core.errors import UserError
from w2svd_core.lora_files import base_hash
from w2svd_core.settings import Model

SIZES: dict[str, Any] = {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 24}
WHOLE = "model.diffusion_model."
XL = {  # labels, and no attention in its first level
    "label_emb.0.0.weight": torch.zeros(4, 4), "input_blocks.1.1.proj_in.weight": None,
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": None,
}  # fmt: skip
TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


@cache
def tiny() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's own layout, which is the class's default, but for its widths."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(attention_head_dim=8, **SIZES).eval().requires_grad_(False)


def shared_name(name: str) -> str:
    """The name of a weight in files of Stable Diffusion 1.5: layers are counted through, down and up."""
    for ours, theirs in TOP.items():
        name = re.sub(rf"^{ours}\.", f"{theirs}.", name)
    found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name)
    if found:
        side, level, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if kind == "downsamplers":
            name = f"input_blocks.{3 * level + 3}.0.{rest.replace('conv', 'op')}"
        elif kind == "upsamplers":
            name = f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.{rest}"
        else:
            number = f"input_blocks.{3 * level + layer + 1}" if side == "down" else f"output_blocks.{3 * level + layer}"
            name = f"{number}.{int(kind == 'attentions')}.{rest}"
    place, _, last = name.rpartition(".")
    block, _, part = place.rpartition(".")
    return f"{block}.{RESNET[part]}.{last}" if part in RESNET and "transformer" not in block else name


def shared_state(prefix: str = WHOLE) -> dict[str, Tensor]:
    return {prefix + shared_name(name): weight.contiguous() for name, weight in tiny().state_dict().items()}


@pytest.mark.parametrize("prefix", [WHOLE, ""])
def test_a_shared_file_is_the_model(prefix: str, tmp_path: Path) -> None:
    """The whole checkpoint, with its other parts, and the UNet alone."""
    beside = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(4)} if prefix else {}
    state = shared_state(prefix)
    assert {prefix + "input_blocks.3.0.op.weight", prefix + "output_blocks.2.1.conv.weight"} <= state.keys()
    save_file({**state, **beside}, tmp_path / "style.safetensors")
    family = backbone("image_unet")
    found = family.load(tmp_path / "style.safetensors", torch.float32)
    assert base_hash(found) == base_hash(tiny())
    x, time, text = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 5, 24)
    assert torch.equal(found(x, time, text).sample, tiny()(x, time, text).sample)
    assert found.config.cross_attention_dim == 24
    half = family.load(tmp_path / "style.safetensors", torch.float16)
    assert next(half.parameters()).dtype == torch.float16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (XL, "no image model of Stable Diffusion 1.5's form"),
        ({"input_blocks.1.1.proj_in.weight": torch.zeros(32, 32)}, "no image model of Stable"),  # 2
        ({"input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}, "no image model of Stable"),  # inpainting
        ({"input_blocks.7.1.proj_in.weight": None}, "copy it again"),
        ({"out.2.weight": None}, "no whole out.2.weight"),
    ],
)
def test_other_models_and_broken_files_are_told(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = shared_state() | {WHOLE + name: weight for name, weight in change.items()}
    path = tmp_path / "other.safetensors"
    save_file({name: weight for name, weight in state.items() if weight is not None}, path)
    with pytest.raises(UserError, match=message):
        backbone("image_unet").load(path, torch.float32)
    if "copy" not in message:  # its sizes can be read
        with pytest.raises(UserError, match=message):
            backbone("image_unet").encoder_source(Model(path=str(path), family="image_unet"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("marks", "header"), [({"v_pred": torch.tensor([])}, {}), ({}, {"modelspec.prediction_type": "v"})]
)
def test_a_model_that_says_it_predicts_a_velocity_is_refused(
    marks: dict[str, Tensor], header: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "velocity.safetensors"
    save_file({**shared_state(), **marks}, path, header)
    with pytest.raises(UserError, match="does not predict the noise"):
        backbone("image_unet").load(path, torch.float32)
    save_file(shared_state(), path, {"modelspec.prediction_type": "epsilon"})
    backbone("image_unet").load(path, torch.float32)


def test_its_encoders_are_looked_for_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file(shared_state(), path)
    settings = Model(path=str(path), family="image_unet")
    source = backbone("image_unet").encoder_source(settings, torch.device("cpu"))
    assert source.width == 24 and source.geometry.channels == 4 and source.geometry.patch == 8
    with pytest.raises(UserError, match="vae is no folder"):
        source.load_codec()


def test_animatediff_is_not_in_such_a_file(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file(shared_state(), path)
    with pytest.raises(UserError, match="does not say that it holds a UNetMotionModel"):
        backbone("animatediff").load(path, torch.float32)
