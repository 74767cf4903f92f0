"""The workflows that need no download run to their end, and a wrong one ends in a sentence while the server lives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from drive import get, run_prompt
from host import ROOT, Server

PORTRAITS = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json") if "portraits" in path.stem)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def small(prompt: dict[str, Any]) -> dict[str, Any]:
    """A workflow with a training of two updates on few clips."""
    less = {"train_steps": 2, "train_batch": 4, "critic_warmup": 1, "critic_updates": 1, "data_clips": 64}
    return {
        key: node | {"inputs": node["inputs"] | {name: less[name] for name in less if name in node["inputs"]}}
        for key, node in prompt.items()
    }


def node_of(prompt: dict[str, Any], kind: str) -> tuple[str, dict[str, Any]]:
    """The first node of a type, with its id."""
    return next((key, node) for key, node in prompt.items() if node["class_type"] == kind)


@pytest.mark.parametrize("name", PORTRAITS)
def test_a_portrait_workflow_runs_to_its_end(name: str, comfy: Server) -> None:
    prompt = small(read(name))
    run = run_prompt(comfy.url, prompt, timeout=1800)
    assert run.status == "success", run.error or run.node_errors
    for key, node in prompt.items():
        if node["class_type"] in ("SaveVideo", "W2SVD_SideBySide", "W2SVD_PlotLoss"):
            (file, *_) = run.outputs[key]["images"]
            query = "&".join(f"{part}={file[part]}" for part in ("filename", "subfolder", "type"))
            assert len(get(comfy.url, f"/view?{query}")) > 1000


def test_metrics_stand_on_the_node(comfy: Server) -> None:
    prompt = read("00_portraits_teacher")
    key, _ = node_of(prompt, "W2SVD_Metrics")
    run = run_prompt(comfy.url, prompt)
    (text,) = run.outputs[key]["text"]
    assert "motion" in text and "pixel diversity" in text and "reference" in text


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("W2SVD_SideBySide", {"clips": 3}, "which are not 3 clips"),
        ("W2SVD_PortraitLatent", {"data_width": 30}, "takes multiples of"),
        ("W2SVD_Sigmas", {"source": "list", "sigmas": "0.5, 1, 0"}, "must fall from"),
        ("W2SVD_Sigmas", {"source": "lora"}, "no LoRA file is chosen"),
    ],
)
def test_a_wrong_value_ends_in_one_sentence(kind: str, changes: dict[str, Any], sentence: str, comfy: Server) -> None:
    prompt = read("00_portraits_teacher")
    key, node = node_of(prompt, kind)
    run = run_prompt(comfy.url, prompt | {key: node | {"inputs": node["inputs"] | changes}})
    assert run.status == "error", run
    assert sentence in run.message
    assert "\n" not in run.message
    assert run.error["node_id"] == key
    assert get(comfy.url, "/system_stats")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..\\secret.safetensors"])
def test_a_file_outside_the_model_folders_is_refused(name: str, comfy: Server) -> None:
    prompt = read("00_portraits_teacher")
    key, node = node_of(prompt, "W2SVD_Sigmas")
    changed = node | {"inputs": node["inputs"] | {"source": "lora", "lora": name}}
    assert run_prompt(comfy.url, prompt | {key: changed}).status in ("invalid", "error")
