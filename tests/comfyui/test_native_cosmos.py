"""Our native files of a Cosmos in ComfyUI's own class: the model, and a LoRA of it with no key left over.

Core has the blocks of Predict2.5 (its class for Predict2), but neither the projection of prompts nor their encoder, so
that prompts come projected here. It takes two widths alone, which makes this the one model that is not tiny.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from cosmos_kinds import new_cosmos
from kind import with_roles
from native_tiny import SIGMA, import_comfy
from torch import Tensor

from w2svd_core.backbones import backbone, cosmos_keys
from w2svd_core.condition import Condition
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.lora_files import pairs_from_peft, write_lora
from w2svd_core.roles import GENERATOR

COSMOS = backbone("cosmos")
PUBLISHED = {  # sizes of the 2B model, with one block and a short projection
    "num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 1, "mlp_ratio": 4.0, "text_embed_dim": 1024,
    "adaln_lora_dim": 256, "encoder_hidden_states_channels": 1024,
}  # fmt: skip


def core_answers(patcher: Any, x_t: Tensor, condition: Condition) -> Tensor:
    """The class of core, told of the given frame and its time as our model is."""
    b, _, f, h, w = x_t.shape
    given, time = torch.zeros(b, 1, f, h, w), SIGMA[:, None].repeat(1, f)
    if "first" in condition.fields:
        given[:, :, 0], time[:, 0] = 1, 1e-4
        x_t = torch.cat([condition.fields["first"], x_t[:, :, 1:]], dim=2)
    with torch.inference_mode():
        found: Tensor = patcher.model.diffusion_model(
            torch.cat([x_t, given], dim=1), time, condition.fields["text"], transformer_options={}
        )
    return found.clone()


@pytest.mark.slow
def test_core_reads_the_model_and_its_lora(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    comfy = import_comfy()
    model = new_cosmos(**PUBLISHED)
    write_safetensors(tmp_path / "model.safetensors", cosmos_keys.to_native(model.state_dict(), "net."))
    patcher = comfy.sd.load_diffusion_model(str(tmp_path / "model.safetensors"))
    assert type(patcher.model).__name__ == "CosmosPredict2" and patcher.model.image_to_video
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)

    rng = torch.Generator().manual_seed(0)
    x_t, text = torch.randn(2, 16, 3, 4, 4, generator=rng), torch.randn(2, 5, 1024, generator=rng)
    first = torch.randn(2, 16, 1, 4, 4, generator=rng)
    asked = [Condition({"text": text}), Condition({"text": text, "first": first})]
    shared = with_roles(model, family="cosmos", student_rank=2, critic_rank=2)
    with torch.no_grad():
        plain = [shared.predict("teacher", x_t, SIGMA, condition) for condition in asked]
        taught = [shared.predict("generator", x_t, SIGMA, condition) for condition in asked]
    for condition, expected in zip(asked, plain, strict=True):
        torch.testing.assert_close(core_answers(patcher, x_t, condition), expected, atol=1e-4, rtol=1e-4)

    write_lora(tmp_path / "lora.safetensors", pairs_from_peft(shared.base, GENERATOR), None, key_map=COSMOS.keys)
    tensors, _ = read_safetensors(tmp_path / "lora.safetensors")
    known = comfy.lora.model_lora_keys_unet(patcher.model, {})
    with caplog.at_level(logging.WARNING):
        patches = comfy.lora.load_lora(tensors, known)
    assert len(patches) == 10 == sum("lora_up" in key for key in tensors) and "not loaded" not in caplog.text
    changed = patcher.clone()
    assert len(changed.add_patches(patches, 1.0)) == 10
    comfy.model_management.load_models_gpu([changed], force_full_load=True)
    for condition, expected, before in zip(asked, taught, plain, strict=True):
        assert (expected - before).abs().max() > 0.01
        torch.testing.assert_close(core_answers(changed, x_t, condition), expected, atol=1e-4, rtol=1e-4)
