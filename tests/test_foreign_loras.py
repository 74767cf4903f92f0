"""LoRA files of others: kohya's names, and whole changes of biases and norms beside the LoRA."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from wan_kinds import CHANGES, condition_of, new_wan, points_of

from w2svd_core.backbones import backbone, wan_keys
from w2svd_core.errors import UserError
from w2svd_core.exporting import convert
from w2svd_core.files import write_safetensors
from w2svd_core.lora_algebra import acting, merge_files, open_lora
from w2svd_core.lora_files import read_changes, read_lora

WAN = backbone("wan")


def linear_names(kind: str) -> list[str]:
    return [name for name, module in new_wan(kind).named_modules() if isinstance(module, torch.nn.Linear)]


def pair_of(name: str, model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    out, into = model.get_submodule(name).weight.shape  # type: ignore[union-attr, misc]
    rng = torch.Generator().manual_seed(len(name))
    return torch.randn(3, into, generator=rng), torch.randn(out, 3, generator=rng)  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", list(CHANGES))
def test_every_layer_under_kohyas_name(kind: str, tmp_path: Path) -> None:
    model, tensors = new_wan(kind), {}
    for name in linear_names(kind):
        stem = f"lora_unet_{wan_keys.native_module(name).replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = pair_of(name, model)
        tensors[f"{stem}.alpha"] = torch.tensor(1.5)
    write_safetensors(tmp_path / "kohya.safetensors", tensors)
    pairs, metadata = read_lora(tmp_path / "kohya.safetensors", wan_keys)
    assert sorted(pairs) == sorted(linear_names(kind)) and metadata is None
    for name, pair in pairs.items():
        down, up = pair_of(name, model)
        assert torch.equal(pair.down, down) and torch.equal(pair.up, up) and pair.alpha == 1.5


@pytest.mark.parametrize("name", ["lora_unet_blocks_0_self_attn_z", "lora_unet_double_blocks_0_img_attn_qkv"])
def test_kohyas_names_of_another_family_are_refused(name: str, tmp_path: Path) -> None:
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.lora_up.weight": torch.ones(4, 2)}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UserError, match="is it for another"):
        read_lora(tmp_path / "x.safetensors", wan_keys)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """As the few-step LoRAs of others are: matrices, biases, norms and a table."""
    rng = torch.Generator().manual_seed(0)
    model = new_wan()
    down, up = pair_of("blocks.0.attn1.to_q", model)
    tensors = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": 0.1 * down,
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": 0.1 * up,
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.randn(24, generator=rng),
        "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.randn(24, generator=rng),
        "diffusion_model.blocks.1.modulation.diff": torch.randn(1, 6, 24, generator=rng),
    }
    write_safetensors(tmp_path / "whole.safetensors", tensors)
    return tmp_path / "whole.safetensors"


def test_changes_beside_a_lora(whole: Path) -> None:
    assert sorted(read_changes(whole, wan_keys)) == [
        "blocks.0.attn1.norm_q", "blocks.0.attn1.to_q.bias", "blocks.1.scale_shift_table",
    ]  # fmt: skip
    before = new_wan()
    model = copy.deepcopy(before)
    merge_files(model, [f"{whole}@0.5"], wan_keys)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    q = "blocks.0.attn1.to_q"
    assert changed == {f"{q}.weight", f"{q}.bias", "blocks.0.attn1.norm_q.weight", "blocks.1.scale_shift_table"}
    change = read_changes(whole, wan_keys)[f"{q}.bias"]
    torch.testing.assert_close(model.get_parameter(f"{q}.bias"), before.get_parameter(f"{q}.bias") + 0.5 * change)


def test_acting_is_as_merged_and_leaves_nothing(whole: Path) -> None:
    model = new_wan()
    before = copy.deepcopy(model.state_dict())
    merged = copy.deepcopy(model)
    merge_files(merged, [str(whole)], wan_keys)
    x_t, sigma, condition = points_of("t2v"), torch.tensor([0.3, 0.8]), condition_of("t2v", 2)
    with torch.no_grad():
        with acting(model, [open_lora(str(whole), wan_keys)[0]]):
            found = WAN.predict(model, x_t, sigma, condition)
        torch.testing.assert_close(found, WAN.predict(merged, x_t, sigma, condition), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_a_converted_lora_has_no_place_for_is_told(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"also changes 3 biases, norms or tables .* put it into a checkpoint by merge"):
        convert(WAN, whole, tmp_path / "out.safetensors", "diffusers", None, None)


def test_a_change_of_another_size_is_refused(tmp_path: Path) -> None:
    tensors = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.ones(1, 24),
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.ones(24, 1),
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(25),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UserError, match=r"x\.safetensors changes blocks\.0\.attn1\.to_q\.bias, .* another size"):
        merge_files(new_wan(), [str(tmp_path / "x.safetensors")], wan_keys)
