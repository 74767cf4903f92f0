"""Workflows in API format that several tests queue, and what a training leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from drive import Run, get
from host import Server

from w2svd_core.files import read_safetensors

Nodes = dict[str, Any]

STEPS = 6
SETTINGS = {
    "train_steps": STEPS, "train_batch": 4, "student_rank": 8, "student_lr": 2e-4, "student_ema": 0.0,
    "student_sampler": "euler", "student_sigmas": "1,0.857143,0.666667,0.4,0", "critic_rank": 8, "critic_lr": 5e-4,
    "critic_updates": 2, "critic_warmup": 1, "matching_guidance_scale": 1.5, "matching_score_law": "shift",
    "matching_score_shift": 5.0, "rollout_source": "backward_simulation", "rollout_reuse": "visited",
    "train_lr_decay": "cosine", "train_checkpoint_every": 50, "train_sample_every": 2, "seed": 0,
}  # fmt: skip
SIZE = {"data_frames": 17, "data_height": 32, "data_width": 32, "data_fps": 8.0}


def node(kind: str, **inputs: Any) -> Nodes:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def portraits(name: str, **settings: Any) -> Nodes:
    """A short training of the bundled portraits; Train is node 5."""
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
    """Of a run."""
    return comfy.home / "output" / "w2svd" / name


def student(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's LoRA, as it is for ComfyUI."""
    return read_safetensors(run / "student" / "student_comfyui.safetensors")[0]


def steps(run: Path) -> list[int]:
    """That a run has in metrics.jsonl; every line is whole."""
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_told(run: Run, comfy: Server, node_id: str, *words: str) -> None:
    """The workflow ended in one sentence on a node, and the server lives."""
    assert run.status == "error", (run.status, run.error, run.node_errors)
    assert run.error["node_id"] == node_id, run.error
    assert all(word in run.message for word in words), run.message
    assert "\n" not in run.message and "Traceback" not in run.message, run.message
    assert get(comfy.url, "/system_stats")
