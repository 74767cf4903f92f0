"""The training in a real graph: the bundled portraits, a few steps on the CPU."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from drive import Run, run_prompt
from graphs import SIZE, STEPS, assert_told, folder, node, portraits, steps, student
from host import Server

from w2svd_core import train
from w2svd_core.config import load_recipe


@pytest.fixture(scope="module")
def whole(comfy: Server) -> Run:
    """A training that ran to its end."""
    return run_prompt(comfy.url, portraits("whole"), timeout=300)


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
    again = copy.deepcopy(portraits("whole"))
    again["7"] = node("PreviewAny", source=["5", 4])  # another graph, so that the cache in memory does not answer
    found = run_prompt(comfy.url, again, timeout=60)
    assert found.status == "success", found.message
    assert (folder(comfy, "whole") / "metrics.jsonl").stat().st_mtime_ns == before


def test_cancel_saves_and_the_same_inputs_end_where_they_would_have(whole: Run, comfy: Server) -> None:
    stopped = run_prompt(
        comfy.url, portraits("stopped"), timeout=300,
        interrupt_when=lambda run: any("step 3 of" in text for _, text in run.texts),
    )  # fmt: skip
    assert stopped.status == "interrupted"
    run = folder(comfy, "stopped")
    assert 3 <= len(steps(run)) <= 5 and list((run / "checkpoints").iterdir())
    assert run_prompt(comfy.url, portraits("stopped"), timeout=300).status == "success"
    assert steps(run) == list(range(1, STEPS + 2))
    before, after = student(folder(comfy, "whole")), student(run)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_prompts_alone(comfy: Server) -> None:
    prompts = portraits("prompts", train_steps=2)
    prompts["2"] = node("W2SVD_PromptSet", prompts="a person, talking\na person with red hair\n", **SIZE)
    folder(comfy, "prompts").mkdir(parents=True)
    (folder(comfy, "prompts") / "prompts.txt").write_text("of a start that was cancelled\n")
    found = run_prompt(comfy.url, prompts, timeout=300)
    assert found.status == "success", found.message
    assert (folder(comfy, "prompts") / "prompts.txt").read_text().splitlines()[1] == "a person with red hair"


@pytest.mark.parametrize(
    ("changes", "node_id", "words"),
    [
        ({"2": {"folder": "../../etc"}}, "2", "leads out of input"),
        ({"2": {"folder": "nothing"}}, "2", "holds no folder nothing"),
        ({"2": {"data_width": 30}}, "5", "30"),
        ({"3": {"matching_alpha_weak": 1.0}, "4": {"matching_guidance_scale": 1.0}}, "5", "alpha_weak"),
        ({"5": {"name": "/etc/passwd"}}, "5", "leads out of w2svd"),
        ({"5": {"name": "..\\wrong"}}, "5", "leads out of w2svd"),
        ({"5": {"name": "wr\0ng"}}, "5", "is no name for a file"),
        ({"4": {"student_sigmas": "1,2,0"}}, "5", "student.sigmas"),
    ],
)
def test_wrong_inputs_end_in_one_sentence(changes: dict[str, Any], node_id: str, words: str, comfy: Server) -> None:
    wrong = portraits("wrong")
    for key, inputs in changes.items():
        wrong[key]["inputs"] |= inputs
    assert_told(run_prompt(comfy.url, wrong, timeout=60), comfy, node_id, words)
    assert not folder(comfy, "wrong").exists()


def test_another_recipe_needs_another_name(whole: Run, comfy: Server) -> None:
    found = run_prompt(comfy.url, portraits("whole", student_lr=1e-4), timeout=60)
    assert_told(found, comfy, "5", "was made with student.lr 0.0002, and the inputs say 0.0001")


def test_a_finished_run_goes_on_for_more_steps(whole: Run, comfy: Server) -> None:
    shutil.copytree(folder(comfy, "whole"), folder(comfy, "longer"))
    found = run_prompt(comfy.url, portraits("longer", train_steps=STEPS + 1), timeout=120)
    assert found.status == "success", found.message
    assert steps(folder(comfy, "longer")) == list(range(1, STEPS + 3))
    before, after = (student(folder(comfy, name)) for name in ("whole", "longer"))
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_that_the_command_line_ended_comes_back_with_its_clips(whole: Run, comfy: Server) -> None:
    run = folder(comfy, "ended")
    shutil.copytree(folder(comfy, "whole"), run)
    for clip in (run / "samples").glob("student-*.mp4"):
        clip.unlink()
    shutil.rmtree(run / "student")
    assert train.main(["--resume", str(run)]) == 0 and not list((run / "samples").glob("student-*.mp4"))
    found = run_prompt(comfy.url, portraits("ended"), timeout=120)
    assert found.status == "success", found.message
    assert len(found.outputs["6"]["images"]) % 17 == 0 and found.previews > 0
    assert steps(run) == list(range(1, STEPS + 2))


def test_a_run_that_was_deleted_is_made_again(comfy: Server) -> None:
    prompt = portraits("deleted", train_steps=1, train_sample_every=0)
    first = run_prompt(comfy.url, prompt, timeout=120)
    assert first.status == "success" and first.previews > 0, first.message  # of the end
    shutil.rmtree(folder(comfy, "deleted"))
    assert run_prompt(comfy.url, prompt, timeout=120).status == "success"
    assert steps(folder(comfy, "deleted")) == [1, 2]
    at = (folder(comfy, "deleted") / "metrics.jsonl").stat().st_mtime_ns
    assert run_prompt(comfy.url, prompt, timeout=60).status == "success"
    assert (folder(comfy, "deleted") / "metrics.jsonl").stat().st_mtime_ns == at
