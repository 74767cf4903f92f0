"""Names of a UNet's layers in LoRA files, against the table of ComfyUI's core."""

from __future__ import annotations

from native_tiny import import_comfy

from w2svd_core.backbones import backbone

STABLE_DIFFUSION = {  # 1.5's
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
}  # fmt: skip


def test_every_layer_of_attention_has_cores_name() -> None:
    import_comfy()
    import comfy.utils

    keys, found = backbone("image_unet").keys, 0
    for ours, theirs in comfy.utils.unet_to_diffusers(STABLE_DIFFUSION).items():
        name = ours.removesuffix(".weight")
        if ".attentions." in name and not ours.endswith(".bias"):
            assert keys.native_module(name) == theirs.removesuffix(".weight"), name
            assert [part.module for part in keys.parts(theirs.removesuffix(".weight"))] == [name]
            found += name.endswith(("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"))
    assert found == 16 * 10  # 16 transformers of two attentions and a feed-forward layer
