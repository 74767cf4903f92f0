"""A native MODEL through Train, in a real graph: clips and prompts that ComfyUI's own nodes encode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drive import Run, run_prompt
from graphs import SETTINGS, SIZE, STEPS, assert_told, folder, node, steps, student
from host import Server

from w2svd_core.config import load_recipe
from w2svd_core.files import read_safetensors, write_safetensors

LONGER = 5 * STEPS  # so long that a cancel comes before its end


def graph(name: str, **settings: Any) -> dict[str, Any]:
    """The portraits by the sockets of core: MODEL, VAE, LATENT, CONDITIONING."""
    return {
        "1": node("W2SVD_PortraitModel"),
        "2": node("W2SVD_EncodeClips", vae=["1", 1], folder="portraits", data_clips=8, **SIZE),
        "3": node("W2SVD_PortraitPrompt", text=["2", 1]),
        "4": node("W2SVD_PortraitPrompt", text=""),
        "5": node(
            "W2SVD_DatasetFromLatents", latents=["2", 0], conditioning=["3", 0], negative=["4", 0], captions=["2", 1],
            data_fps=8.0,
        ),
        "6": node("W2SVD_DistillSettings", **SETTINGS | settings),
        "7": node("W2SVD_Train", model=["1", 0], vae=["1", 1], dataset=["5", 0], settings=["6", 0], name=name),
        "8": node("PreviewImage", images=["7", 3]),
    }  # fmt: skip


def sampled(prompt: dict[str, Any], levels: str) -> dict[str, Any]:
    """The graph with four steps of the teacher itself, by core's nodes."""
    return prompt | {
        "20": node("RandomNoise", noise_seed=3),
        "21": node("BasicGuider", model=["1", 0], conditioning=["4", 0]),
        "22": node("KSamplerSelect", sampler_name="euler"),
        "23": node("W2SVD_Sigmas", source="list", lora="none", steps=4, shift=5.0, sigmas=levels, boundary=0.875),
        "24": node("W2SVD_PortraitLatent", data_frames=17, data_height=32, data_width=32, batch_size=1),
        "25": node(
            "SamplerCustomAdvanced", noise=["20", 0], guider=["21", 0], sampler=["22", 0], sigmas=["23", 0],
            latent_image=["24", 0],
        ),
        "26": node("SaveLatent", samples=["25", 0], filename_prefix="native/teacher"),
    }  # fmt: skip


def latents(run: Run, comfy: Server) -> torch.Tensor:
    """What the teacher of `sampled` made."""
    assert run.status == "success", run.message
    (file,) = run.outputs["26"]["latents"]
    return read_safetensors(comfy.home / "output" / file["subfolder"] / file["filename"])[0]["latent_tensor"]


@pytest.fixture(scope="module")
def before(comfy: Server) -> torch.Tensor:
    """The teacher's clip before its MODEL is trained on."""
    prompt = graph("native")
    asked = sampled({key: prompt[key] for key in ("1", "4")}, "1, 0.9375, 0.8333333, 0.625, 0")
    return latents(run_prompt(comfy.url, asked, timeout=120), comfy)


@pytest.fixture(scope="module")
def whole(comfy: Server, before: torch.Tensor) -> Run:
    """A training that ran to its end, of the very MODEL that was sampled: ComfyUI has kept it."""
    return run_prompt(comfy.url, graph("native"), timeout=300)


def test_a_native_training_ends_with_its_student(whole: Run, comfy: Server) -> None:
    assert whole.status == "success", whole.message
    run = folder(comfy, "native")
    tensors = student(run)
    assert all(t.abs().max() > 0 for name, t in tensors.items() if name.endswith("lora_up.weight"))
    assert steps(run) == list(range(1, STEPS + 2))
    recipe = load_recipe(run / "recipe.yaml")
    assert (recipe.data.frames, recipe.data.height, recipe.data.width) == (17, 32, 32)
    assert len(whole.outputs["8"]["images"]) % 17 == 0 and whole.previews > 0


def test_the_model_is_the_same_in_the_graph_afterwards(whole: Run, before: torch.Tensor, comfy: Server) -> None:
    asked = sampled(graph("native"), "1,0.9375,0.8333333,0.625,0")  # written otherwise, so that it is sampled again
    after = latents(run_prompt(comfy.url, asked, timeout=120), comfy)
    assert before.abs().max() > 0 and torch.equal(before, after)


def test_the_same_inputs_come_from_disk_and_others_need_another_name(whole: Run, comfy: Server) -> None:
    at = (folder(comfy, "native") / "metrics.jsonl").stat().st_mtime_ns
    again = graph("native") | {"9": node("PreviewAny", source=["7", 4])}
    assert run_prompt(comfy.url, again, timeout=120).status == "success"
    assert (folder(comfy, "native") / "metrics.jsonl").stat().st_mtime_ns == at
    for key, changes, words in (
        ("6", {"student_rank": 7}, "was made with student.rank 8, and the inputs say 7"),
        ("4", {"text": "red hair"}, "was made with other clips or prompts"),
    ):
        wrong = graph("native")
        wrong[key]["inputs"] |= changes
        found = run_prompt(comfy.url, wrong, timeout=120)
        assert_told(found, comfy, "7", words)
    other = graph("native")
    other["10"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name="native.safetensors", strength_model=1.0)
    other["7"]["inputs"]["model"] = ["10", 0]
    tensors, header = read_safetensors(folder(comfy, "native") / "student" / "student_comfyui.safetensors")
    write_safetensors(comfy.home / "models" / "loras" / "native.safetensors", tensors, header)
    found = run_prompt(comfy.url, other, timeout=120)
    assert_told(found, comfy, "7", "was made with another MODEL")


def test_cancel_saves_and_goes_on_exactly(whole: Run, comfy: Server) -> None:
    stopped = run_prompt(
        comfy.url, graph("native_stopped"), timeout=300,
        interrupt_when=lambda run: any("step 3 of" in text for _, text in run.texts),
    )  # fmt: skip
    assert stopped.status == "interrupted" and len(steps(folder(comfy, "native_stopped"))) < STEPS + 1
    assert run_prompt(comfy.url, graph("native_stopped"), timeout=300).status == "success"
    at_once, resumed = student(folder(comfy, "native")), student(folder(comfy, "native_stopped"))
    assert all(torch.equal(at_once[name], resumed[name]) for name in at_once)


def test_a_longer_training_that_was_cancelled_goes_on(whole: Run, comfy: Server) -> None:
    """The student of the shorter one is there all the while, and is not taken for it."""
    longer = graph("native_longer")
    assert run_prompt(comfy.url, longer, timeout=300).status == "success"
    longer["6"]["inputs"]["train_steps"] = LONGER
    stopped = run_prompt(
        comfy.url,
        longer,
        timeout=300,
        interrupt_when=lambda run: any(f"step {STEPS + 2} of" in t for _, t in run.texts),
    )
    assert stopped.status == "interrupted" and len(steps(folder(comfy, "native_longer"))) < LONGER + 1
    assert run_prompt(comfy.url, longer, timeout=300).status == "success"
    assert steps(folder(comfy, "native_longer")) == list(range(1, LONGER + 2))
    found = run_prompt(comfy.url, graph("native_longer"), timeout=300)  # the shorter one again
    assert_told(found, comfy, "7", "raise it to")


def test_single_frames_are_encoded(comfy: Server) -> None:
    prompt = {
        "1": node("W2SVD_PortraitModel"),
        "2": node("W2SVD_EncodeClips", vae=["1", 1], folder="portraits", data_clips=8, **SIZE | {"data_frames": 1}),
        "3": node("SaveLatent", samples=["2", 0], filename_prefix="native/single"),
    }
    found = run_prompt(comfy.url, prompt, timeout=120)
    assert found.status == "success", found.message
    assert len(found.outputs["3"]["latents"]) == 8


def test_prompts_alone(comfy: Server) -> None:
    prompts = graph("native_prompts", train_steps=2)
    prompts["2"] = node("W2SVD_PromptList", prompts="a person, talking\na person with red hair\n")
    prompts["3"] = node("W2SVD_PortraitPrompt", text=["2", 0])
    prompts["24"] = node("W2SVD_PortraitLatent", data_frames=17, data_height=32, data_width=32, batch_size=1)
    prompts["5"] = node(
        "W2SVD_DatasetFromConditioning", conditioning=["3", 0], negative=["4", 0], size=["24", 0], captions=["2", 0],
        data_fps=8.0,
    )  # fmt: skip
    found = run_prompt(comfy.url, prompts, timeout=300)
    assert found.status == "success", found.message
    assert load_recipe(folder(comfy, "native_prompts") / "recipe.yaml").data.frames == 17


def test_sockets_that_do_not_belong_together_are_told_in_one_sentence(comfy: Server) -> None:
    by_name = node("W2SVD_PromptSet", prompts="a person, talking", **SIZE)
    for changes, words in (
        ({"5": by_name}, "connect Clips from Latents"),
        ({"7": {"model": ["1", 2]}}, "are encoded already"),
        ({"7": {"vae": None}}, "needs its VAE"),
    ):
        wrong = graph("native_wrong")
        for key, change in changes.items():
            wrong[key] = change if "class_type" in change else wrong[key] | {"inputs": wrong[key]["inputs"] | change}
        if wrong["7"]["inputs"]["vae"] is None:
            del wrong["7"]["inputs"]["vae"]
        found = run_prompt(comfy.url, wrong, timeout=120)
        assert_told(found, comfy, "7", words)
