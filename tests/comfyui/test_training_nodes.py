"""The training in a real graph: the bundled portraits, a few steps on the CPU."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import Run, run_prompt
from host import Server

from w2svd_core.config import load_recipe
from w2svd_core.files import read_safetensors

STEPS = 6
SETTINGS = {
    "train_steps": STEPS, "train_batch": 4, "student_rank": 8, "student_lr": 2e-4, "student_ema": 0.0,
    "student_sampler": "euler", "student_sigmas": "1,0.857143,0.666667,0.4,0", "critic_rank": 8, "critic_lr": 5e-4,
    "critic_updates": 2, "critic_warmup": 1, "matching_guidance_scale": 1.5, "matching_score_law": "shift",
    "matching_score_shift": 5.0, "rollout_source": "backward_simulation", "rollout_reuse": "visited",
    "train_lr_decay": "cosine", "train_checkpoint_every": 50, "train_sample_every": 2, "seed": 0,
}  # fmt: skip
SIZE = {"data_frames": 17, "data_height": 32, "data_width": 32, "data_fps": 8.0}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def graph(name: str, **settings: Any) -> dict[str, Any]:
    return {
        "1": node("W2SVD_PortraitModel"),
        "2": node(
            "W2SVD_DatasetFromFolder", folder="portraits", data_clips=16, data_buckets=1, data_min_frames=0, **SIZE
        ),
        "3": node("W2SVD_RealShift", matching_alpha_weak=0.25, matching_alpha_strong=1.0),
        "4": node("W2SVD_DistillSettings", **SETTINGS | settings),
        "5": node("W2SVD_Train", model=["1", 2], dataset=["2", 0], shift=["3", 0], settings=["4", 0], name=name),
        "6": node("PreviewImage", images=["5", 3]),
    }  # fmt: skip


def folder(comfy: Server, name: str) -> Path:
    return comfy.home / "output" / "w2svd" / name


def student(run: Path) -> dict[str, torch.Tensor]:
    return read_safetensors(run / "student" / "student_comfyui.safetensors")[0]


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(comfy: Server) -> Run:
    """A training that ran to its end."""
    return run_prompt(comfy.url, graph("whole"), timeout=300)


def test_a_training_ends_with_its_student(whole: Run, comfy: Server) -> None:
    assert whole.status == "success", whole.message
    run = folder(comfy, "whole")
    tensors = student(run)
    assert all(t.abs().max() > 0 for name, t in tensors.items() if name.endswith("lora_up.weight"))
    assert steps(run) == list(range(1, STEPS + 2))  # with the critic's head start
    recipe = load_recipe(run / "recipe.yaml")
    assert (recipe.train.steps, recipe.matching.alpha_weak, recipe.data.clips) == (STEPS, 0.25, 16)
    assert any(f"step {STEPS + 1} of {STEPS + 1}, student" in text for _, text in whole.texts)
    assert whole.previews > 0
    assert len(whole.outputs["6"]["images"]) % 17 == 0


def test_the_same_inputs_come_from_disk(whole: Run, comfy: Server) -> None:
    before = (folder(comfy, "whole") / "metrics.jsonl").stat().st_mtime_ns
    again = copy.deepcopy(graph("whole"))
    again["7"] = node("PreviewAny", source=["5", 4])  # another graph, so that the cache in memory does not answer
    found = run_prompt(comfy.url, again, timeout=60)
    assert found.status == "success", found.message
    assert (folder(comfy, "whole") / "metrics.jsonl").stat().st_mtime_ns == before


def test_cancel_saves_and_the_same_inputs_end_where_they_would_have(whole: Run, comfy: Server) -> None:
    stopped = run_prompt(
        comfy.url, graph("stopped"), timeout=300,
        interrupt_when=lambda run: any("step 3 of" in text for _, text in run.texts),
    )  # fmt: skip
    assert stopped.status == "interrupted"
    run = folder(comfy, "stopped")
    assert 3 <= len(steps(run)) <= 5 and list((run / "checkpoints").iterdir())
    assert run_prompt(comfy.url, graph("stopped"), timeout=300).status == "success"
    assert steps(run) == list(range(1, STEPS + 2))
    before, after = student(folder(comfy, "whole")), student(run)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_prompts_alone(comfy: Server) -> None:
    prompts = graph("prompts", train_steps=2)
    prompts["2"] = node("W2SVD_PromptSet", prompts="a person, talking\na person with red hair\n", **SIZE)
    found = run_prompt(comfy.url, prompts, timeout=300)
    assert found.status == "success", found.message
    assert (folder(comfy, "prompts") / "prompts.txt").read_text().splitlines()[1] == "a person with red hair"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"2": {"folder": "../../etc"}}, "leads out of input"),
        ({"2": {"folder": "nothing"}}, "holds no folder nothing"),
        ({"2": {"data_width": 30}}, "30"),
        ({"3": {"matching_alpha_weak": 1.0}, "4": {"matching_guidance_scale": 1.0}}, "alpha_weak"),
        ({"5": {"name": "/etc/passwd"}}, "leads out of w2svd"),
        ({"4": {"student_sigmas": "1,2,0"}}, "student.sigmas"),
    ],
)
def test_wrong_inputs_end_in_one_sentence(changes: dict[str, Any], words: str, comfy: Server) -> None:
    wrong = graph("wrong")
    for key, inputs in changes.items():
        wrong[key]["inputs"] |= inputs
    found = run_prompt(comfy.url, wrong, timeout=60)
    assert found.status == "error" and words in found.message and "\n" not in found.message, found.message


def test_another_recipe_needs_another_name(whole: Run, comfy: Server) -> None:
    found = run_prompt(comfy.url, graph("whole", train_steps=STEPS + 1), timeout=60)
    assert found.status == "error" and "was made with other inputs" in found.message
