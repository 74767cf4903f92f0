"""The nodes of sampling, LoRA files and portraits, as far as they need no ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from w2svd_core.backbones import wan_keys
from w2svd_core.flow import RectifiedFlow, sigma_list
from w2svd_core.lora_files import LoraMetadata, LoraPair, Schedule, native_tensors, read_lora, write_lora
from w2svd_core.randomness import noise_of_seeds
from w2svd_core.sampling import sample

Modules = Callable[[str], ModuleType]

TRAINED = (1.0, 0.857143, 0.666667, 0.4, 0.0)
ABOUT = LoraMetadata("dmd", (Schedule(TRAINED, "euler", 2.0), Schedule((1.0, 0.5, 0.0))), "Wan", "")
PAIRS = {
    name: LoraPair(torch.randn(2, 6), torch.randn(8, 2), 4.0)
    for name in ("blocks.0.attn1.to_q", "blocks.1.ffn.net.0.proj")
}


@pytest.fixture
def loras(comfy_home: Path) -> Path:
    folder = comfy_home / "models" / "loras"
    write_lora(folder / "own.safetensors", PAIRS, ABOUT, key_map=wan_keys)
    write_lora(folder / "others.safetensors", PAIRS, None, key_map=wan_keys)
    return folder


def told(pack: ModuleType, sentence: str) -> Any:
    """The pack's own UserError: another class than that of `w2svd_core`, as inside ComfyUI."""
    import sys

    return pytest.raises(sys.modules[f"{pack.__name__}.w2svd_core.errors"].UserError, match=sentence)


# ---- sampling


@pytest.mark.parametrize(("eta", "sampler"), [(0.0, "euler"), (1.0, "renoise")])
def test_the_sampler_walks_as_the_headless_one(module_of: Modules, eta: float, sampler: Any) -> None:
    few = module_of("nodes.sampling")

    def denoise(x: Tensor, sigma: Tensor, scale: float = 0.3) -> Tensor:
        return scale * x * sigma.view(-1, 1, 1, 1, 1).cos()

    seeds, shape, seen = [5, 6], (4, 3, 2, 2), []
    start = few.ClipNoise(5).generate_noise({"samples": torch.zeros(2, *shape)})
    walked = few.FewSteps(eta)(
        lambda x, sigma, seed, scale: denoise(x, sigma, scale),
        start,
        torch.tensor(TRAINED),
        {"seed": 5, "scale": 0.3},
        seen.append,
        True,
    )
    wanted = sample(
        lambda x, sigma: denoise(x, torch.full((2,), sigma)),
        RectifiedFlow(),
        lambda step: noise_of_seeds(shape, seeds, step),
        TRAINED,
        sampler,
    )
    assert (walked - wanted).abs().max() < 1e-5
    assert [one["i"] for one in seen] == [0, 1, 2, 3]
    assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}


def test_a_second_model_draws_other_noise_than_the_first(module_of: Modules) -> None:
    fresh, like = module_of("nodes.sampling").fresh_noise, torch.zeros(2, 4, 3, 2, 2)
    first, second = fresh(like, 3, 1.0, 0), fresh(like, 3, 0.875, 0)
    assert (first - second).abs().max() > 0.5
    assert torch.equal(first[1], fresh(like, 4, 1.0, 0)[0])  # a clip has its own seed
    assert fresh(like, None, 1.0, 0).shape == like.shape


def test_the_noise_of_a_batch_index(module_of: Modules) -> None:
    noise, empty = module_of("nodes.sampling").ClipNoise(9), torch.zeros(3, 4, 1, 2, 2)
    whole = noise.generate_noise({"samples": empty})
    part = noise.generate_noise({"samples": empty[:2], "batch_index": [2, 0]})
    assert torch.equal(part, whole[[2, 0]])


def test_schedules_by_source(module_of: Modules, pack: ModuleType, loras: Path) -> None:
    few = module_of("nodes.sampling")

    def levels(source: str, lora: str = "none", steps: int = 0, sigmas: str = "") -> tuple[float, ...]:
        return tuple(few.schedule_of(source, lora, steps, 5.0, sigmas).sigmas)

    assert levels("steps") == sigma_list(4, 5.0) and levels("steps", steps=6) == sigma_list(6, 5.0)
    assert levels("list", sigmas="1, .5, 0") == (1.0, 0.5, 0.0)
    assert levels("lora", "own.safetensors") == TRAINED
    assert levels("lora", "own.safetensors", 2) == (1.0, 0.5, 0.0)
    assert levels("lora", "own.safetensors", 6) == sigma_list(6, 2.0)
    with told(pack, "others.safetensors names no schedule"):
        levels("lora", "others.safetensors")
    with told(pack, "no LoRA file is chosen"):
        levels("lora")
    with told(pack, "'a' in the sigmas 'a' is no number"):
        levels("list", sigmas="a")


def test_high_and_low_are_sigmas_too(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    node = nodes["W2SVD_Sigmas"]
    monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="1"), raising=False)
    out = node.execute("steps", "none", 4, 5.0, "", 0.875)
    whole, high, low = out.args
    assert whole.tolist() == pytest.approx([1, 0.9375, 0.833333, 0.625, 0])
    assert torch.equal(torch.cat([high, low[1:]]), whole) and len(high) == 3
    assert node.execute("steps", "none", 4, 5.0, "", 0.0).args[2].shape == (0,)


# ---- LoRAs


def test_every_kind_of_keys_becomes_native(module_of: Modules, tmp_path: Path) -> None:
    native, keys = module_of("nodes.native_lora"), module_of("w2svd_core.backbones.wan_keys")
    wanted = native_tensors(PAIRS, wan_keys)
    for kind in ("native", "diffusers"):
        write_lora(tmp_path / "x.safetensors", PAIRS, ABOUT, format=kind, key_map=wan_keys)  # type: ignore[arg-type]
        found = native.read_native(tmp_path / "x.safetensors", keys, "x")
        assert found.tensors.keys() == wanted.keys() and found.unknown == ()
        assert all(torch.equal(found.tensors[key], wanted[key]) for key in wanted)
        assert found.about.default.sigmas == TRAINED
    odd = {"lora_te_layer.alpha": torch.tensor(1.0), "diffusion_model.blocks.0.cross_attn.norm_k.diff": torch.ones(8)}
    odd["transformer.blocks.0.attn1.to_q.diff_b"] = torch.ones(8)
    found = native.as_native({**wanted, **odd}, {}, keys, tmp_path, "x")
    assert found.unknown == ("lora_te_layer.alpha",)
    assert found.tensors.keys() - wanted.keys() == {
        "diffusion_model.blocks.0.cross_attn.norm_k.diff",
        "diffusion_model.blocks.0.self_attn.q.diff_b",
    }


def test_a_lora_model_keeps_what_is_known_of_it(module_of: Modules, tmp_path: Path) -> None:
    native, lora = module_of("nodes.native_lora"), module_of("nodes.lora")
    keys = module_of("w2svd_core.backbones.wan_keys")
    model = native.LoraModel(native_tensors(PAIRS, wan_keys), ABOUT)
    assert isinstance(model, dict) and native.of_socket(model, keys).about is ABOUT
    assert native.of_socket(dict(model), keys).about is None
    for format in ("native", "diffusers"):
        assert lora.write_socket(model, model.about, tmp_path / "x.safetensors", format, "bf16") == len(PAIRS)
        pairs, about = read_lora(tmp_path / "x.safetensors", wan_keys)
        assert about == ABOUT and {pair.down.dtype for pair in pairs.values()} == {torch.bfloat16}
        assert {pair.alpha for pair in pairs.values()} == {4.0}


def test_linked_sigmas_become_the_first_schedule(module_of: Modules, pack: ModuleType) -> None:
    about_of = module_of("nodes.lora").with_schedule
    assert about_of(ABOUT, None, "renoise") is ABOUT
    sigmas = torch.tensor(sigma_list(4, 5.0), dtype=torch.float32)
    first = about_of(None, sigmas, "renoise").default
    assert first.shift == 5.0 and first.sigmas == (1.0, 0.9375, 0.8333333, 0.625, 0.0)
    trained = replace(ABOUT.default, sampler="euler", embedded_guidance=6.0, guidance_scale=2.0)
    own = about_of(replace(ABOUT, schedules=(trained,)), sigmas[[0, 2, 4]], "as trained").default
    assert own == replace(trained, sigmas=(1.0, 0.8333333, 0.0), shift=own.shift)
    assert about_of(None, sigmas, "as trained").default.sampler == "renoise"
    assert about_of(replace(ABOUT, schedules=(trained,)), sigmas, "renoise").default.sampler == "renoise"
    with told(pack, "must fall"):
        about_of(None, torch.tensor([1.0, 0.5]), "renoise")


def test_what_can_not_be_saved_says_so(module_of: Modules, pack: ModuleType, tmp_path: Path) -> None:
    write, path = module_of("nodes.lora").write_socket, tmp_path / "x.safetensors"
    with told(pack, "nothing to save"):
        write({}, None, path, "native", "keep")
    tensors = native_tensors(PAIRS, wan_keys)
    bias = {**tensors, "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(8)}
    with told(pack, "no place in a LoRA of diffusers"):
        write(bias, None, path, "diffusers", "keep")
    assert write(bias, None, path, "native", "keep") == len(PAIRS)
    big = {key: value * 1e6 for key, value in tensors.items()}
    with told(pack, "not finite in fp16"):
        write(big, None, path, "native", "fp16")


# ---- portraits


def test_a_prompt_is_as_wide_as_native_wan_reads_it(nodes: dict[str, Any]) -> None:
    from w2svd_core.data.prompts import HashedWords

    (((found, extra),),) = nodes["W2SVD_PortraitPrompt"].execute("talking, red hair").args
    assert found.shape == (1, 24, 4096) and extra == {}
    assert torch.equal(found[..., :64], HashedWords().encode(["talking, red hair"]).fields["text"])
    assert not found[..., 64:].any()


def test_an_empty_clip_has_the_codecs_shape(nodes: dict[str, Any]) -> None:
    latent = nodes["W2SVD_PortraitLatent"]
    (found,) = latent.execute(2, data_frames=17, data_height=32, data_width=48).args
    assert found["samples"].shape == (2, 16, 5, 8, 12) and not found["samples"].any()
    with pytest.raises(RuntimeError, match=r"data\.height is 30 px, but this model takes multiples of 8; use 24"):
        latent.execute(1, data_frames=17, data_height=30, data_width=32)
