"""Portraits, LoRAs and few-step sampling in a real ComfyUI, against the headless sampler."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drive import get, run_prompt
from graphs import Nodes, node
from host import Server
from portrait_graphs import (
    NEAR,
    SIGMAS,
    WAN,
    apart,
    base,
    headless,
    new_pairs,
    new_teacher,
    run,
    sampled,
    sampler,
    sigmas,
)
from safetensors.torch import save_file

from w2svd_core.assembly import bundled_encoders
from w2svd_core.data.codec import decode_pixels
from w2svd_core.generation import Way
from w2svd_core.loading import Loaded
from w2svd_core.lora_algebra import Lora, open_lora
from w2svd_core.lora_files import LoraMetadata, LoraPair, Schedule, read_lora, write_lora

# ---- files


@pytest.fixture(scope="module")
def teacher() -> Loaded:
    return new_teacher()


@pytest.fixture(scope="module")
def loras(comfy: Server, teacher: Loaded) -> Path:
    """ComfyUI's folder of LoRAs, with one LoRA under every kind of keys, another one, and some that do not fit."""
    folder = comfy.home / "models" / "loras"
    schedules = (Schedule(SIGMAS, "euler", 2.0), Schedule((1.0, 0.5, 0.0), "renoise", 1.0))
    about = LoraMetadata("dmd", schedules, "WanTransformer3DModel", "", recipe="portraits")
    pairs = {name.removesuffix(".base_layer"): pair for name, pair in new_pairs(teacher.model.base, 0).items()}
    names = [name.removesuffix(".base_layer") for name in pairs]
    assert len(names) == 30
    write_lora(folder / "native.safetensors", pairs, about, key_map=WAN.keys)
    write_lora(folder / "diffusers.safetensors", pairs, about, format="diffusers", key_map=WAN.keys)
    kohya, peft = {}, {}
    for name, pair in pairs.items():
        stem = f"lora_unet_{WAN.keys.native_module(name).replace('.', '_')}"
        kohya |= {f"{stem}.lora_down.weight": pair.down, f"{stem}.lora_up.weight": pair.up}
        kohya[f"{stem}.alpha"] = torch.tensor(pair.alpha)
        peft[f"base_model.model.{name}.lora_A.weight"] = pair.down
        peft[f"base_model.model.{name}.lora_B.weight"] = pair.up * 2
    kohya["lora_te_text_model.alpha"] = torch.tensor(1.0)
    save_file(kohya, folder / "kohya.safetensors")
    save_file(peft, folder / "peft.safetensors")
    second = {name.removesuffix(".base_layer"): pair for name, pair in new_pairs(teacher.model.base, 1, 2).items()}
    write_lora(folder / "second.safetensors", second, None, key_map=WAN.keys)
    wide = {name: LoraPair(torch.ones(2, 8), torch.ones(8, 2), 2.0) for name in list(pairs)[:2]}
    write_lora(folder / "wide.safetensors", wide, None, key_map=WAN.keys)
    save_file({"unet.mid.lora_up.weight": torch.ones(8, 2)}, folder / "other.safetensors")
    (folder / "torn.safetensors").write_bytes((folder / "native.safetensors").read_bytes()[:2000])
    shutil.copy(folder / "torn.safetensors", comfy.home / "models" / "outside.safetensors")
    return folder


# ---- sampling


def test_core_sampling_of_the_portrait_teacher_is_the_headless_one(comfy: Server, teacher: Loaded) -> None:
    prompt = base() | {"renoise": sampler("renoise"), "ode": sampler("ode")}
    prompt |= sampled("t_euler", ["model", 0], ["euler", 0], ["sigmas", 0])
    prompt |= sampled("t_ode", ["model", 0], ["ode", 0], ["sigmas", 0])
    prompt |= sampled("t_renoise", ["model", 0], ["renoise", 0], ["sigmas", 0])
    prompt |= sampled("t_guided", ["model", 0], ["ode", 0], ["sigmas", 0], cfg=2.5)
    run(comfy, prompt)
    euler = headless(teacher, Way("teacher", SIGMAS, "euler"))
    renoise = headless(teacher, Way("teacher", SIGMAS, "renoise"))
    assert apart(comfy, "t_euler", euler) < NEAR
    assert apart(comfy, "t_ode", euler) < NEAR
    assert apart(comfy, "t_renoise", renoise) < NEAR
    assert (euler - renoise).abs().max() > 0.1  # the two are told apart
    assert apart(comfy, "t_guided", headless(teacher, Way("teacher", SIGMAS, "euler", 2.5))) < NEAR


def test_two_models_one_after_the_other_make_what_one_does(comfy: Server, teacher: Loaded) -> None:
    """High and low noise, as Wan 2.2 is sampled."""
    prompt = base() | {"ode": sampler("ode"), "off": node("DisableNoise"), "sigmas": sigmas("list", boundary=0.6)}
    prompt |= sampled("s_high", ["model", 0], ["ode", 0], ["sigmas", 1])
    low = {"noise": ["off", 0], "latent_image": ["s_high", 0]}
    prompt |= sampled("s_low", ["model", 0], ["ode", 0], ["sigmas", 2], **low)
    assert "3 high, 1 low" in run(comfy, prompt).outputs["sigmas"]["text"][0]
    assert apart(comfy, "s_low", headless(teacher, Way("teacher", SIGMAS, "euler"))) < NEAR


def test_a_mixed_sampler_lies_between(comfy: Server, teacher: Loaded) -> None:
    prompt = base() | {f"m{i}": sampler("mixed", eta) for i, eta in enumerate((0.0, 0.5, 1.0))}
    for i in range(3):
        prompt |= sampled(f"mixed{i}", ["model", 0], [f"m{i}", 0], ["sigmas", 0])
    run(comfy, prompt)
    euler, renoise = (headless(teacher, Way("teacher", SIGMAS, way)) for way in ("euler", "renoise"))
    assert apart(comfy, "mixed0", euler) < NEAR and apart(comfy, "mixed2", renoise) < NEAR
    assert min(apart(comfy, "mixed1", euler), apart(comfy, "mixed1", renoise)) > 0.05


def test_the_vae_decodes_and_encodes_as_the_codec_does(comfy: Server, teacher: Loaded) -> None:
    from PIL import Image

    prompt = base() | sampled("v", ["model", 0], ["euler", 0], ["sigmas", 0])
    prompt["one"] = node("LatentFromBatch", samples=["v", 0], batch_index=0, length=1)
    prompt["seen"] = node("VAEDecode", samples=["one", 0], vae=["model", 1])
    prompt["tiled"] = node(
        "VAEDecodeTiled", samples=["one", 0], vae=["model", 1], tile_size=64, overlap=0, temporal_size=8,
        temporal_overlap=4,
    )  # fmt: skip
    prompt["frames"] = node("SaveImage", images=["seen", 0], filename_prefix="n1/frame")
    prompt["tiles"] = node("SaveImage", images=["tiled", 0], filename_prefix="n1/tile")
    prompt["back"] = node("VAEEncode", pixels=["seen", 0], vae=["model", 1])
    prompt["back_saved"] = node("SaveLatent", samples=["back", 0], filename_prefix="n1/back")
    done, codec = run(comfy, prompt), bundled_encoders().codec
    clip = headless(teacher, Way("teacher", SIGMAS, "euler"))[:1]
    wanted = decode_pixels(codec, clip)[0].astype(int)
    for kind in ("frames", "tiles"):
        files = [comfy.home / "output" / one["subfolder"] / one["filename"] for one in done.outputs[kind]["images"]]
        found = np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)
        assert found.shape == wanted.shape == (17, 32, 32, 3)
        assert np.abs(found - wanted).max() <= 1
    assert apart(comfy, "back", codec.encode(codec.decode(clip))) < 1e-3


# ---- LoRAs


def test_a_lora_of_core_and_of_ours_is_the_headless_one(comfy: Server, teacher: Loaded, loras: Path) -> None:
    """Whatever keys it has; and core's own loader finds a place for every key of a native file."""
    prompt = base() | {"trained": sigmas("lora", "native.safetensors", steps=0)}
    core = node("LoraLoaderModelOnly", model=["model", 0], lora_name="native.safetensors", strength_model=1.0)
    prompt["core"] = core
    prompt |= sampled("l_core", ["core", 0], ["euler", 0], ["trained", 0])
    kinds = ("native", "diffusers", "peft", "kohya")
    for kind in kinds:
        prompt[kind] = node("W2SVD_LoadLoRA", model=["model", 0], lora=f"{kind}.safetensors", strength=1.0)
        prompt |= sampled(f"l_{kind}", [kind, 0], ["euler", 0], ["sigmas", 0])
    prompt |= sampled("l_own_way", ["native", 0], ["native", 2], ["native", 1])
    before = len(comfy.logged())
    done = run(comfy, prompt)
    logged = comfy.logged()[before:]
    assert "not loaded" not in logged.lower() and "ERROR" not in logged
    wanted = headless(
        teacher, Way("teacher", SIGMAS, "euler"), [open_lora(str(loras / "native.safetensors"), WAN.keys)[0]]
    )
    for name in ("l_core", "l_own_way", *(f"l_{kind}" for kind in kinds)):
        assert apart(comfy, name, wanted) < NEAR, name
    assert apart(comfy, "l_core", headless(teacher, Way("teacher", SIGMAS, "euler"))) > 0.1
    assert "all 30 layers" in done.outputs["diffusers"]["text"][0]
    assert "30 layers matched, 1 did not: lora_te_text_model" in done.outputs["kohya"]["text"][0]
    assert "the LoRA names none" in done.outputs["kohya"]["text"][0]


def test_loras_stack_and_act_with_their_strength(comfy: Server, teacher: Loaded, loras: Path) -> None:
    prompt = base()
    prompt["one"] = node("W2SVD_LoadLoRA", model=["model", 0], lora="native.safetensors", strength=0.5)
    prompt["two"] = node("LoraLoaderModelOnly", model=["one", 0], lora_name="second.safetensors", strength_model=2.0)
    prompt["weak"] = node("W2SVD_WeakLoRA", model=["model", 0], lora="native.safetensors", matching_alpha_weak=0.25)
    prompt |= sampled("stacked", ["two", 0], ["euler", 0], ["sigmas", 0])
    prompt |= sampled("shifted", ["weak", 0], ["euler", 0], ["sigmas", 0])
    prompt |= sampled("plain", ["model", 0], ["euler", 0], ["sigmas", 0])  # last: the model itself is untouched
    run(comfy, prompt)
    way = Way("teacher", SIGMAS, "euler")
    first, second = (open_lora(str(loras / f"{name}.safetensors"), WAN.keys)[0].pairs for name in ("native", "second"))
    assert apart(comfy, "stacked", headless(teacher, way, [Lora(first, 0.5), Lora(second, 2.0)])) < NEAR
    assert apart(comfy, "shifted", headless(teacher, way, [Lora(first, 0.25)])) < NEAR
    assert apart(comfy, "plain", headless(teacher, way)) < NEAR


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("wide.safetensors", "8 -> 8 wide, this model 256 -> 256; choose a LoRA of this model's size"),
        ("other.safetensors", "has no layer of this WAN21 model (its first key: unet.mid.lora_up.weight)"),
        ("torn.safetensors", "is not a whole safetensors file"),
        ("none", "no LoRA file is chosen"),
    ],
)
def test_a_lora_that_does_not_fit_ends_in_one_sentence(comfy: Server, loras: Path, file: str, told: str) -> None:
    prompt = base() | {"lora": node("W2SVD_LoadLoRA", model=["model", 0], lora=file, strength=1.0)}
    prompt |= sampled("never", ["lora", 0], ["euler", 0], ["sigmas", 0])
    done = run_prompt(comfy.url, prompt, timeout=60)
    assert done.status == "error" and done.error["node_id"] == "lora"
    assert told in done.message and "\n" not in done.message
    assert get(comfy.url, "/system_stats")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "..\\outside.safetensors"])
def test_no_file_outside_the_folder_is_read_or_written(comfy: Server, loras: Path, name: str) -> None:
    prompt = base() | {"lora": node("W2SVD_LoadLoRA", model=["model", 0], lora=name, strength=1.0)}
    prompt |= sampled("never", ["lora", 0], ["euler", 0], ["sigmas", 0])
    done = run_prompt(comfy.url, prompt, timeout=60)  # 0.3.64 lets any choice through to the node
    assert done.status == "invalid" or "models/loras holds no LoRA" in done.message
    prompt = {"convert": converted("native.safetensors", "native", name)}
    done = run_prompt(comfy.url, prompt, timeout=60)
    assert done.status == "error" and "leads out of loras" in done.message


def converted(lora: str, format: str, name: str, rank: int = 0) -> Nodes:
    return node("W2SVD_ConvertLoRA", lora=lora, format=format, rank=rank, name=name, if_exists="number")


def test_convert_writes_other_keys_and_ranks(comfy: Server, loras: Path) -> None:
    prompt = {
        "a": converted("peft.safetensors", "native", ""),
        "b": converted("native.safetensors", "diffusers", "x/y", 2),
    }
    run(comfy, prompt)
    original, _ = read_lora(loras / "native.safetensors", WAN.keys)
    pairs, _ = read_lora(loras / "peft_native.safetensors", WAN.keys)
    assert max(float((pairs[name].delta() - original[name].delta()).abs().max()) for name in original) < 1e-5
    lower, about = read_lora(loras / "x" / "y.safetensors", WAN.keys)
    assert {pair.rank for pair in lower.values()} == {2} and about is not None and about.default.sigmas == SIGMAS
    prompt["b"]["inputs"]["rank"] = 3
    run(comfy, prompt)
    assert (loras / "x" / "y_2.safetensors").is_file()


def test_sigmas_of_steps_and_of_a_lora(comfy: Server, loras: Path) -> None:
    prompt = base()
    prompt["four"] = sigmas("steps")
    prompt["two"] = sigmas("lora", "diffusers.safetensors", steps=2)
    prompt["six"] = sigmas("lora", "diffusers.safetensors", steps=6)
    for name in ("four", "two", "six"):
        prompt |= sampled(f"g_{name}", ["model", 0], ["euler", 0], [name, 0])
    texts = {name: out["text"][0] for name, out in run(comfy, prompt).outputs.items() if "text" in out}
    assert texts["four"].startswith("4 steps: 1, 0.9375, 0.8333, 0.625, 0; renoise")
    assert texts["two"].startswith("2 steps: 1, 0.5, 0; renoise")
    assert texts["six"].startswith("6 steps: 1, 0.9091, ") and "not trained with so many steps" in texts["six"]
    prompt["two"] = sigmas("lora", "kohya.safetensors")
    done = run_prompt(comfy.url, prompt, timeout=60)
    assert done.status == "error" and "kohya.safetensors names no schedule" in done.message
