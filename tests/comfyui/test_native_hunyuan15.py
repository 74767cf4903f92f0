"""HunyuanVideo 1.5 in "Load Diffusion Model" and headless: one file, one answer, one fingerprint, one LoRA."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hunyuan15_kinds import HUNYUAN15
from kind import Kind, program_of
from native_tiny import Vae, import_comfy, latent, loaded, same_rounds, small_recipe
from test_native_hunyuan import one_lora, one_model
from torch import nn

from w2svd_core.condition import Condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.files import write_safetensors

kinds = pytest.mark.parametrize("kind", HUNYUAN15, ids=str)
SIZES: dict[str, Any] = {  # what ComfyUI takes for granted of every HunyuanVideo 1.5
    "attention_head_dim": 128, "num_attention_heads": 1, "rope_axes_dim": (16, 56, 56), "mlp_ratio": 4.0,
    "num_refiner_layers": 2, "text_embed_2_dim": 1472, "image_embed_dim": 1152,
}  # fmt: skip


def twins(kind: Kind, folder: Path) -> tuple[nn.Module, Any]:
    """diffusers' model, and its native file as a MODEL; the test is skipped where ComfyUI is older than it."""
    import_comfy()
    import comfy.supported_models

    if not hasattr(comfy.supported_models, "HunyuanVideo15"):
        pytest.skip("this ComfyUI does not know HunyuanVideo 1.5")
    model = kind.new(**SIZES)
    write_safetensors(folder / "model.safetensors", kind.backbone.native_state(model))
    return model, loaded(folder / "model.safetensors")


def conditions(kind: Kind, rows: int = 2) -> tuple[Condition, Condition]:
    """diffusers' and ComfyUI's: prompts of one length, because ComfyUI's mean over the tokens counts padding, too."""
    fields = dict(kind.condition(rows).fields)
    rng = torch.Generator().manual_seed(1)
    for name, width in {"text": fields["text"].shape[-1], "glyphs": SIZES["text_embed_2_dim"]}.items():
        fields[f"{name}_mask"] = torch.ones_like(fields[f"{name}_mask"])
        fields[name] = torch.randn(*fields[name].shape[:2], width, generator=rng)
    native = {"c_crossattn": fields["text"], "txt_byt5": fields["glyphs"]}
    frames = torch.zeros_like(kind.points(rows))
    given = torch.zeros_like(frames[:, :1])
    if kind.picture:
        fields["image"] = torch.randn(rows, 3, SIZES["image_embed_dim"], generator=rng)
        frames[:, :, :1] = fields["start"]
        given[:, :, 0] = 1
        native["clip_fea"] = fields["image"]
    return Condition(fields), Condition({**native, "c_concat": torch.cat([frames, given], dim=1)})


@kinds
def test_one_file_is_one_model_in_both(kind: Kind, tmp_path: Path) -> None:
    one_model(kind, *twins(kind, tmp_path), *conditions(kind))


@kinds
def test_a_lora_of_either_acts_in_both(kind: Kind, tmp_path: Path) -> None:
    one_lora(kind, *twins(kind, tmp_path), *conditions(kind), tmp_path)


@kinds
def test_it_trains_with_the_losses_of_headless(kind: Kind, tmp_path: Path) -> None:
    """Prompts of several lengths, some with words in quotes: core is told by their lengths, diffusers by masks."""
    from w2svd_core.backbones.comfy import NativeSource, native_data, native_job

    model, patcher = twins(kind, tmp_path)
    masks = {name: kind.condition(5).fields[name] for name in ("text_mask", "glyphs_mask")}
    whole = Condition({**conditions(kind, rows=5)[0].fields, **masks})
    latents, names = kind.points(4), ("a", "b", "c", "d")
    null = Condition({name: value for name, value in whole[4:].fields.items() if name not in ("start", "image")})
    headless = small_recipe(**{"model.family": kind.family})
    expected = program_of(headless, model, LatentSet(latents, whole[:4], null, names))
    *rows, empty = (conditioning(patcher, kind, whole[[row]]) for row in range(5))
    data = native_data(patcher, [latent(patcher, latents)], rows, empty, names)
    with native_job(patcher, small_recipe(), data, NativeSource(patcher, Vae())) as job:
        same_rounds(job.program, expected, leaving="gradient_norm")


def conditioning(patcher: Any, kind: Kind, row: Condition) -> list[Any]:
    """What core's nodes make of one prompt: nothing of filler, no second text without quotes, and a first frame."""
    held = row.fields
    text, glyphs = (held[name][:, : int(held[f"{name}_mask"].sum())].clone() for name in ("text", "glyphs"))
    about: dict[str, Any] = {"pooled_output": None}
    if glyphs.shape[1]:
        about["conditioning_byt5small"] = glyphs
    if kind.picture:
        frames, unknown = torch.zeros_like(kind.points(1)), torch.ones_like(kind.points(1)[:, :1])
        frames[:, :, :1], unknown[:, :, 0] = held["start"], 0
        about["concat_latent_image"] = patcher.model.latent_format.process_out(frames)
        about["concat_mask"] = unknown
        about["clip_vision_output"] = SimpleNamespace(last_hidden_state=held["image"].clone())
    return [[text, about]]
