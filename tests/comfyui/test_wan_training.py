"""A Wan by name in a real graph: a diffusers folder and native single files, clips and captions of the user's own."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drive import Run, run_prompt
from graphs import SETTINGS, Nodes, assert_told, folder, node, steps, student
from host import Server
from tiny_wan import FRAMES, PROMPTS, TinyWan, tiny_wan
from video_files import write

from w2svd_core.config import load_recipe
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.lora_files import LoraMetadata

SMALL = {"train_steps": 2, "train_batch": 2, "student_rank": 2, "critic_rank": 2, "train_checkpoint_every": 1}
NONE = {"vae": "none", "text_encoder": "none", "image_encoder": "none", "tokenizer": "none"}
FILES = {"vae": "tiny.safetensors", "text_encoder": "tiny.safetensors", "tokenizer": "tiny"}


@pytest.fixture(scope="module")
def house(comfy: Server) -> Iterator[TinyWan]:
    """A tiny Wan in ComfyUI's folders of models, as a pipeline and as single files, and two clips in input/clips."""
    tiny, models = tiny_wan("t2v"), comfy.home / "models"
    shutil.copytree(tiny.folder, models / "diffusers" / "tiny")
    places = {"transformer": "diffusion_models", "vae": "vae", "text_encoder": "text_encoders"}
    for part, place in places.items():
        (models / place).mkdir(exist_ok=True)
        shutil.copy(tiny.files[part], models / place / "tiny.safetensors")
    clips, rng = comfy.home / "input" / "clips", np.random.default_rng(0)
    clips.mkdir()
    for number in range(2):
        coarse = rng.integers(0, 256, (FRAMES + number, 4, 4, 3), dtype=np.uint8)
        video = coarse.repeat(tiny.size[0] // 4, axis=1).repeat(tiny.size[1] // 4, axis=2)
        write(clips / f"{number}.mkv", video, "ffv1", "bgr0", rate=16)
        (clips / f"{number}.txt").write_text(PROMPTS[number])
    yield tiny
    shutil.rmtree(clips)


def graph(name: str, tiny: TinyWan, model: str = "tiny", clips: str = "clips", **parts: str) -> Nodes:
    height, width = tiny.size
    size = {"data_frames": FRAMES, "data_height": height, "data_width": width, "data_fps": 16.0}
    about = {"model_precision": "fp32", "model_gradient_checkpointing": False}
    return {
        "1": node("W2SVD_LoadModel", model=model, **NONE | parts, **about),
        "2": node("W2SVD_DatasetFromFolder", folder=clips, data_clips=16, data_buckets=1, data_min_frames=0, **size),
        "4": node("W2SVD_DistillSettings", **SETTINGS | SMALL),
        "5": node("W2SVD_Train", model=["1", 0], dataset=["2", 0], settings=["4", 0], name=name),
        "6": node("SaveImage", images=["5", 3], filename_prefix=f"wan/{name}"),
        "7": node("PreviewAny", source=["5", 1]),
        "8": node(
            "W2SVD_SaveLoRA", lora=["5", 0], name=f"wan/{name}", if_exists="replace", format="native",
            precision="keep", sampler="euler",
        ),
    }  # fmt: skip


def run(comfy: Server, prompt: Nodes) -> Run:
    done = run_prompt(comfy.url, prompt, timeout=300)
    assert done.status == "success", (done.message, done.node_errors)
    return done


@pytest.mark.parametrize(("name", "model", "parts"), [("folder", "tiny", {}), ("files", "tiny.safetensors", FILES)])
def test_a_wan_is_trained_on_clips(comfy: Server, house: TinyWan, name: str, model: str, parts: dict[str, str]) -> None:
    done, place = run(comfy, graph(name, house, model, **parts)), folder(comfy, name)
    assert steps(place) == [1, 2, 3]
    recipe = load_recipe(place / "recipe.yaml")
    assert (recipe.train.steps, recipe.data.frames, recipe.model.encoders) == (2, FRAMES, "own")
    ups = [tensor for key, tensor in student(place).items() if key.endswith("lora_up.weight")]
    assert len(ups) == 20 and all(tensor.abs().max() > 0 for tensor in ups)
    assert len(done.outputs["6"]["images"]) % FRAMES == 0
    assert "0.8571" in done.outputs["7"]["text"][0]
    saved, header = read_safetensors(comfy.home / "models" / "loras" / "wan" / f"{name}.safetensors")
    assert all(torch.equal(saved[key], tensor) for key, tensor in student(place).items())
    about = LoraMetadata.from_strings(header, Path(name))
    assert about is not None and about.default.sigmas == (1.0, 0.857143, 0.666667, 0.4, 0.0)
    assert any("encoding" in text for _, text in done.texts) or name == "files"


def test_folder_and_files_make_the_same_student(comfy: Server, house: TinyWan) -> None:
    one, other = (student(folder(comfy, name)) for name in ("folder", "files"))
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, atol=1e-5, rtol=1e-4)


def test_clips_that_have_changed_are_another_run(comfy: Server, house: TinyWan) -> None:
    """The node that reads them runs again; what was trained on others is not handed out as theirs."""
    prompt = graph("folder", house)
    assert "2" in run(comfy, prompt).cached
    caption = comfy.home / "input" / "clips" / "0.txt"
    before = caption.read_text()
    caption.write_text(PROMPTS[1])
    try:
        assert_told(run_prompt(comfy.url, prompt, timeout=60), comfy, "5", "other clips")
    finally:
        caption.write_text(before)
    done = run(comfy, prompt)
    assert steps(folder(comfy, "folder")) == [1, 2, 3] and done.outputs["6"]["images"]


def test_a_model_that_makes_no_numbers(comfy: Server, house: TinyWan) -> None:
    """Weights that are not finite, as in a file that was converted badly."""
    broken = comfy.home / "models" / "diffusers" / "broken"
    shutil.copytree(house.folder, broken)
    (path,) = (broken / "transformer").glob("*.safetensors")
    tensors, header = read_safetensors(path)
    tensors["proj_out.weight"][:] = torch.nan
    write_safetensors(path, tensors, header)
    prompt = graph("broken", house, "broken")
    assert_told(run_prompt(comfy.url, prompt, timeout=120), comfy, "5", "non-finite", "check the model")
    assert not (folder(comfy, "broken") / "student").exists()


@pytest.mark.parametrize(
    ("changes", "node_id", "words"),
    [
        ({"1": {"vae": "fake.safetensors"}}, "5", "is a pickled file"),
        ({"1": {"model": "fake.safetensors"}}, "5", "is a pickled file"),
        ({"1": {"tokenizer": "none"}}, "5", "tokenizer"),
        ({"1": {"vae": "none"}}, "5", "model.vae"),
        ({"2": {"folder": "silent"}}, "5", "caption"),
        ({"2": {"folder": "linked"}}, "2", "leads out of input by a link"),
        ({"2": {"data_frames": 4093}}, "5", "none of the 2 clips can be used"),
        ({"2": {"data_width": 20}}, "5", "multiples of"),
    ],
)
def test_what_does_not_serve(comfy: Server, house: TinyWan, changes: dict[str, Any], node_id: str, words: str) -> None:
    home = comfy.home
    for place in ("vae", "diffusion_models"):
        (home / "models" / place / "fake.safetensors").write_bytes(pickle.dumps({"x": torch.ones(3)}))
    silent, linked = home / "input" / "silent", home / "input" / "linked"
    if not silent.exists():
        shutil.copytree(home / "input" / "clips", silent)
        (silent / "0.txt").unlink()
        linked.symlink_to(home / "models", target_is_directory=True)
    wrong = graph("wrong", house, "tiny.safetensors", **FILES)
    for key, inputs in changes.items():
        wrong[key]["inputs"] |= inputs
    assert_told(run_prompt(comfy.url, wrong, timeout=60), comfy, node_id, words)
    assert not (folder(comfy, "wrong") / "student").exists()
