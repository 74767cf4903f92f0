"""A tiny Wan twice: diffusers' class, and the same weights as "Load Diffusion Model" hands them out, on the CPU."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from wan_kinds import condition_of, new_wan

from w2svd_core.backbones import backbone, wan_keys
from w2svd_core.condition import Condition
from w2svd_core.config import check_recipe
from w2svd_core.data.latents import LatentSet
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.lora_files import native_tensors, pairs_from_peft
from w2svd_core.roles import GENERATOR, SharedModel

SIGMA = torch.tensor([0.9, 0.35])
RANKS = {"critic_rank": 4, "student_rank": 4}
WIDTH = 4096  # of a prompt's tokens in ComfyUI


@functools.cache
def import_comfy() -> Any:
    """ComfyUI's modules in this process, told to use the CPU; the test is skipped where this Python lacks its needs."""
    sys.path.append(os.environ["COMFYUI_PATH"])
    try:
        from comfy.cli_args import args

        args.cpu = True
        import comfy.sd
    except ImportError as error:
        pytest.skip(f"this Python can't import ComfyUI ({error}); run the tests with ComfyUI's own requirements")
    return comfy


def new_twin(folder: Path, kind: str = "t2v", **changes: Any) -> tuple[nn.Module, Path]:
    """diffusers' model with heads as ComfyUI expects them, and its native file."""
    sizes = {"num_attention_heads": 1, "attention_head_dim": 128, "freq_dim": 256} | changes
    model = new_wan(kind, **sizes)
    path = folder / f"{kind}.safetensors"
    write_safetensors(path, wan_keys.pad_text_dim(wan_keys.to_native(model.state_dict()), WIDTH))
    return model, path


def loaded(path: Path, **options: Any) -> Any:
    """The MODEL as a node hands it out: made in inference mode."""
    comfy = import_comfy()
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path), model_options=options)


def asked(patcher: Any, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """What the MODEL answers in the graph: x0, in inference mode, with the patches that are on it."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        found = patcher.model.apply_model(x_t, sigma, **condition.fields)
    return found.clone()


def native(condition: Condition) -> Condition:
    """diffusers' condition as ComfyUI's."""
    text = condition.fields["text"]
    return Condition({"c_crossattn": pad(text, (0, WIDTH - text.shape[-1]))})


def conditioning(condition: Condition) -> list[Any]:
    """Each row as a CONDITIONING."""
    tokens = native(condition).fields["c_crossattn"]
    with torch.inference_mode():
        return [[[row[None].clone(), {}]] for row in tokens]


def same_rounds(found: Any, expected: Any, leaving: str = "no name") -> None:
    """Two programs log the same numbers, round by round; those whose names end in `leaving` may differ."""
    assert found.rounds == expected.rounds
    for index in range(expected.rounds):
        seen, wanted = found.round(index), expected.round(index)
        assert seen.keys() == wanted.keys() and any(name.endswith("loss") for name in seen)
        for name in wanted:
            if not name.endswith(leaving):
                assert seen[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-4), (index, name)


def scaled_twin(path: Path) -> Path:
    """The native file beside it with the blocks' layers in 8 bits, each with its scale."""
    state, _ = read_safetensors(path)
    found = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in state.items():
        if name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            found[name] = (tensor / scale).to(torch.float8_e4m3fn)
            found[name.replace(".weight", ".scale_weight")] = scale.reshape(1)
        else:
            found[name] = tensor
    scaled = path.with_name("scaled.safetensors")
    write_safetensors(scaled, found)
    return scaled


def new_hunyuan() -> Any:
    """A tiny HunyuanVideo as a MODEL: fused layers, blocks that add in place, three fields in a condition."""
    import_comfy()
    import comfy.model_patcher
    import comfy.supported_models

    sizes = {
        "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
        "context_in_dim": 24, "hidden_size": 128, "mlp_ratio": 2.0, "num_heads": 1, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 256, "qkv_bias": True, "guidance_embed": True,
        "vec_in_dim": 12, "byt5": False,
    }  # fmt: skip
    later = {"meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}
    import comfy.ldm.hunyuan_video.model as hunyuan

    known = {field.name for field in fields(hunyuan.HunyuanVideoParams)}
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = comfy.supported_models.HunyuanVideo(sizes | {k: v for k, v in later.items() if k in known})
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "")
        for parameter in model.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape) + (1.0 if parameter.ndim == 1 else 0.0))
        return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def latent(patcher: Any, latents: Tensor) -> dict[str, Tensor]:
    """Normalised latents as a LATENT."""
    with torch.inference_mode():
        return {"samples": patcher.model.latent_format.process_out(latents.clone())}


class Vae:
    """One pixel to a latent cell, of its first three channels."""

    def decode(self, samples: Tensor) -> Tensor:
        return samples[:, :3].movedim(1, -1).sigmoid()


def lora_of(shared: SharedModel) -> dict[str, Tensor]:
    """The student as a LORA_MODEL."""
    return native_tensors(pairs_from_peft(shared.base, GENERATOR), shared.backbone.keys)


def shaken_adapters(*models: Any, seed: int = 1) -> None:
    """Let the adapters of several models do the same thing: something."""
    for model in models:
        rng = torch.Generator().manual_seed(seed)
        for role in ("fake", "generator"):
            for parameter in model.parameters(role).values():
                parameter.data = 0.05 * torch.randn(parameter.shape, generator=rng)


def gradients(ask: Callable[[], Tensor], parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients of the square of an answer."""
    ask().square().sum().backward()
    found = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return {name: copy.deepcopy(grad) for name, grad in found.items() if grad is not None}


@contextlib.contextmanager
def native_roles(patcher: Any, **settings: Any) -> Iterator[SharedModel]:
    """A MODEL with its roles, as the Train node has it."""
    from w2svd_core.backbones.comfy import mounted
    from w2svd_core.backbones.comfy_backbone import NativeBackbone

    with mounted(patcher) as base:
        yield SharedModel(NativeBackbone(base), base, **RANKS | settings)


def headless_roles(model: nn.Module, **settings: Any) -> SharedModel:
    """diffusers' model with its roles."""
    return SharedModel(backbone("wan"), copy.deepcopy(model), **RANKS | settings)


def learned(model: SharedModel, role: Any, x_t: Tensor, condition: Condition) -> dict[str, Tensor]:
    """Gradients of a role."""
    return gradients(lambda: model.predict(role, x_t, SIGMA, condition), model.parameters(role))


def small_recipe(**changes: Any) -> Any:
    """A recipe of seconds; settings by key."""
    small = {
        "train.batch": 2, "train.steps": 2, "train.checkpoint_every": 1, "train.sample_every": 0,
        "train.tracker": "none",
        "student.rank": 4, "critic.rank": 4, "student.lr": 1e-3, "critic.lr": 1e-3, "critic.updates": 2,
        "critic.warmup": 1, "rollout.pool": 4, "evaluate.clips": 0, "matching.guidance_scale": 3.0,
    }  # fmt: skip
    return check_recipe(small | changes, "in a test")


def clips() -> LatentSet:
    """Four clips of random latents."""
    rng = torch.Generator().manual_seed(2)
    latents = torch.randn(4, 16, 3, 4, 4, generator=rng)
    return LatentSet(latents, condition_of("t2v", 4), condition_of("t2v", 1, seed=1), ("a", "b", "c", "d"))


def sockets(patcher: Any, data: LatentSet) -> Any:
    """The same clips through the sockets of the Train node."""
    from w2svd_core.backbones.comfy import native_data

    (negative,) = conditioning(data.null)
    return native_data(patcher, [latent(patcher, data.latents)], conditioning(data.condition), negative, data.captions)
