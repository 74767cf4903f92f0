"""What a training in the graph hands out, in core's nodes and in ours, alone and with a second LoRA."""

from __future__ import annotations

import pytest
from drive import run_prompt
from graphs import assert_told, node, portraits
from host import Server
from portrait_graphs import NEAR, SIGMAS, WAN, apart, base, headless, new_pairs, new_teacher, run, sampled

from w2svd_core.generation import Way
from w2svd_core.loading import Loaded
from w2svd_core.lora_algebra import Lora, open_lora
from w2svd_core.lora_files import write_lora

EULER = Way("teacher", SIGMAS, "euler")
TRAINED, SECOND = "trained/portrait.safetensors", "trained/second.safetensors"


@pytest.fixture(scope="module")
def teacher() -> Loaded:
    return new_teacher()


@pytest.fixture(scope="module")
def trained(comfy: Server, teacher: Loaded) -> dict[str, Lora]:
    """LoRAs in models/loras: one that Save LoRA wrote after a training, and a second one; by name.

    The same workflow samples the training's own output, strong and weak.
    """
    prompt = base() | portraits("loras", student_lr=0.02)
    prompt["saved"] = node(
        "W2SVD_SaveLoRA", lora=["5", 0], name="trained/portrait", if_exists="replace", format="native",
        precision="keep", sampler="euler",
    )  # fmt: skip
    prompt["socket"] = node("W2SVD_LoadLoRA", model=["model", 0], lora="none", strength=1.0, lora_model=["5", 0])
    prompt["core"] = node("LoraModelLoader", model=["model", 0], lora=["5", 0], strength_model=1.0, bypass=False)
    prompt["weak"] = weak("none", lora_model=["5", 0])
    for name in ("socket", "core", "weak"):
        prompt |= sampled(f"t_{name}", [name, 0], ["euler", 0], ["5", 1])
    before = len(comfy.logged())
    done = run(comfy, prompt)
    assert "not loaded" not in comfy.logged()[before:].lower()
    assert "30 layers, native keys" in done.outputs["saved"]["text"][0]
    assert "all 30 layers of the LoRA matched" in done.outputs["socket"]["text"][0]
    assert "base + 0.25 of the adapter" in done.outputs["weak"]["text"][0]
    folder = comfy.home / "models" / "loras"
    second = {name.removesuffix(".base_layer"): pair for name, pair in new_pairs(teacher.model.base, 1, 2).items()}
    write_lora(folder / SECOND, second, None, key_map=WAN.keys)
    return {name: open_lora(str(folder / name), WAN.keys)[0] for name in (TRAINED, SECOND)}


def weak(lora: str, **link: object) -> dict[str, object]:
    return node("W2SVD_WeakLoRA", model=["model", 0], lora=lora, matching_alpha_weak=0.25, **link)


def test_the_trained_lora_is_the_headless_one(comfy: Server, teacher: Loaded, trained: dict[str, Lora]) -> None:
    wanted, plain = headless(teacher, EULER, [trained[TRAINED]]), headless(teacher, EULER)
    assert (wanted - plain).abs().max() > 0.01  # it does something
    assert apart(comfy, "t_socket", wanted) < NEAR
    assert apart(comfy, "t_core", wanted) < NEAR
    assert apart(comfy, "t_weak", headless(teacher, EULER, [Lora(trained[TRAINED].pairs, 0.25)])) < NEAR


def test_core_stacks_it_with_a_second_lora(comfy: Server, teacher: Loaded, trained: dict[str, Lora]) -> None:
    prompt = base()
    prompt["one"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name=TRAINED, strength_model=1.0)
    prompt["two"] = node("LoraLoaderModelOnly", model=["one", 0], lora_name=SECOND, strength_model=0.7)
    prompt["weak"] = weak(TRAINED)
    for name in ("one", "two", "weak"):
        prompt |= sampled(f"f_{name}", [name, 0], ["euler", 0], ["sigmas", 0])
    before = len(comfy.logged())
    run(comfy, prompt)
    assert "not loaded" not in comfy.logged()[before:].lower()
    first, second = trained[TRAINED], Lora(trained[SECOND].pairs, 0.7)
    both = headless(teacher, EULER, [first, second])
    assert apart(comfy, "f_one", headless(teacher, EULER, [first])) < NEAR
    assert apart(comfy, "f_two", both) < NEAR
    assert min(apart(comfy, "f_one", both), apart(comfy, "f_two", headless(teacher, EULER, [second]))) > 0.01
    assert apart(comfy, "f_weak", headless(teacher, EULER, [Lora(first.pairs, 0.25)])) < NEAR


def test_a_file_and_a_link_at_once_are_too_many(comfy: Server, trained: dict[str, Lora]) -> None:
    prompt = base() | portraits("loras", student_lr=0.02)
    prompt["both"] = weak(TRAINED, lora_model=["5", 0])
    prompt |= sampled("never", ["both", 0], ["euler", 0], ["sigmas", 0])
    assert_told(run_prompt(comfy.url, prompt, timeout=60), comfy, "both", "there are two LoRAs")
