"""HunyuanVideo in "Load Diffusion Model" and headless: one file, one answer, one fingerprint, one LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hunyuan_kinds import HUNYUAN
from kind import Kind
from native_tiny import SIGMA, asked, loaded, lora_of, native_roles, shaken_adapters
from torch import Tensor, nn

from w2svd_core.condition import GUIDANCE, Condition
from w2svd_core.files import write_safetensors
from w2svd_core.heads import Taps
from w2svd_core.lora_algebra import merge_files
from w2svd_core.lora_files import base_hash, native_tensors, read_lora, write_lora

SIZES: dict[str, Any] = {  # what ComfyUI takes for granted of every HunyuanVideo
    "attention_head_dim": 128, "num_attention_heads": 1, "rope_axes_dim": (16, 56, 56), "mlp_ratio": 4.0,
    "num_refiner_layers": 2, "pooled_projection_dim": 768, "num_layers": 2, "num_single_layers": 2,
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", [kind for kind in HUNYUAN if not kind.held], ids=str)


def twins(kind: Kind, folder: Path) -> tuple[nn.Module, Any]:
    """diffusers' model, and its native file as a MODEL."""
    model = kind.new(**SIZES)
    write_safetensors(folder / "model.safetensors", kind.backbone.native_state(model))
    return model, loaded(folder / "model.safetensors")


def conditions(kind: Kind) -> tuple[Condition, Condition]:
    """diffusers' and ComfyUI's: prompts of one length, because ComfyUI's mean over the tokens counts padding, too."""
    fields = dict(kind.condition(2).fields)
    rng = torch.Generator().manual_seed(1)
    fields["text_mask"] = torch.ones_like(fields["text_mask"])
    fields["text"] = torch.randn(fields["text"].shape, generator=rng)
    fields["pooled"] = torch.randn(2, SIZES["pooled_projection_dim"], generator=rng)
    native = {"c_crossattn": fields["text"], "y": fields["pooled"]}
    if GUIDANCE in fields:
        native[GUIDANCE] = fields[GUIDANCE]
    if kind.picture:
        frames = torch.zeros_like(kind.points())
        frames[:, :, :1] = fields[kind.picture]
        given = torch.zeros_like(frames[:, :1])
        given[:, :, 0] = 1
        native["c_concat"] = torch.cat([frames, given], dim=1)
    return Condition(fields), Condition(native)


def clean(kind: Kind, model: nn.Module, condition: Condition) -> Tensor:
    """The clean sample that diffusers' model sees."""
    x_t = kind.points()
    with torch.no_grad():
        output = kind.backbone.predict(model, x_t, SIGMA, condition)
    return kind.backbone.process.x0_from_output(x_t, output, SIGMA)


@kinds
def test_one_file_is_one_model_in_both(kind: Kind, tmp_path: Path) -> None:
    one_model(kind, *twins(kind, tmp_path), *conditions(kind))


@kinds
def test_a_lora_of_either_acts_in_both(kind: Kind, tmp_path: Path) -> None:
    one_lora(kind, *twins(kind, tmp_path), *conditions(kind), tmp_path)


@pytest.mark.parametrize("checkpointing", [False, True])
@kinds
def test_a_discriminators_pass_may_end_after_the_double_blocks(kind: Kind, checkpointing: bool, tmp_path: Path) -> None:
    """Features and gradient of the whole pass, and a MODEL that answers as before."""
    _, patcher = twins(kind, tmp_path)
    _, condition = conditions(kind)
    x_t = kind.points().requires_grad_()
    with native_roles(patcher, checkpointing=checkpointing) as shared:
        shaken_adapters(shared)
        blocks = list(shared.backbone.blocks(shared.base))
        short, whole = Taps(blocks, (0.5,)), Taps(blocks, (0.5, 1.0))
        assert short.blocks == [shared.base.native.double_blocks[-1]] and short.beyond is not None

        def call() -> Tensor:
            return shared.predict("fake", x_t, SIGMA, condition)

        with torch.no_grad():
            before = call()
        found = [taps.of(call)[0] for taps in (short, whole)]
        assert torch.equal(*found)
        one, other = (torch.autograd.grad(features.square().sum(), x_t)[0] for features in found)
        assert one.any() and torch.equal(one, other)
        with torch.no_grad():
            assert torch.equal(call(), before)


def one_model(kind: Kind, model: nn.Module, patcher: Any, ours: Condition, theirs: Condition) -> None:
    """One answer and one fingerprint of diffusers' model and of a MODEL."""
    found, expected = asked(patcher, kind.points(), SIGMA, theirs), clean(kind, model, ours)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with native_roles(patcher) as shared:
        assert base_hash(shared.base_state()) == base_hash(model)


def one_lora(kind: Kind, model: nn.Module, patcher: Any, ours: Condition, theirs: Condition, folder: Path) -> None:
    """A LoRA of the MODEL reads back bit for bit, is diffusers' too, and every layer of it acts in ComfyUI's core."""
    import comfy.sd

    with native_roles(patcher) as shared:
        shaken_adapters(shared)
        layers, lora = len(shared.backbone.lora_targets), lora_of(shared)
    path = folder / "lora.safetensors"
    write_safetensors(path, lora)
    pairs, _ = read_lora(path, kind.backbone.keys)
    again = native_tensors(pairs, kind.backbone.keys)
    assert again.keys() == lora.keys() and all(torch.equal(again[key], lora[key]) for key in lora)

    before = clean(kind, model, ours)
    merge_files(model, [str(path)], kind.backbone.keys)
    wanted = clean(kind, model, ours)
    assert (wanted - before).abs().max() > 0.01
    for found in (lora, separate(pairs, kind, folder)):
        with torch.inference_mode():
            with_lora, _ = comfy.sd.load_lora_for_models(patcher, None, found, 1.0, 0.0)
        assert len(with_lora.patches) == layers == len(found) // 3
        torch.testing.assert_close(asked(with_lora, kind.points(), SIGMA, theirs), wanted, atol=1e-4, rtol=1e-4)


def separate(pairs: Any, kind: Kind, folder: Path) -> dict[str, Tensor]:
    """A LoRA that was saved for diffusers, layer by layer, in native keys."""
    write_lora(folder / "theirs.safetensors", pairs, None, format="diffusers", key_map=kind.backbone.keys)
    found, _ = read_lora(folder / "theirs.safetensors", kind.backbone.keys)
    return native_tensors(found, kind.backbone.keys)
