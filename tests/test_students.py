"""What a run hands out: folders that are whole or not there, precision, metadata, and nothing of the user's machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kind import Programs, Recipes

from w2svd_core.assembly import Job, bundled_encoders
from w2svd_core.config import check_recipe, load_recipe
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors, whole_folder
from w2svd_core.lora_metadata import LoraMetadata
from w2svd_core.settings import Recipe
from w2svd_core.students import save_student, without_places

PLACES = {"data.folder": "/home/somebody/clips", "data.cache": "/home/somebody/cache", "model.path": "/home/somebody/w"}


def saved(new_program: Programs, recipe: Recipe, folder: Path) -> tuple[Any, list[Path]]:
    """A program after one round, and the files of its student."""
    program = new_program(recipe)
    program.round(0)
    job = Job(program.model, bundled_encoders(), program.data, program, program.student)
    return program, save_student(recipe, job, folder)


@pytest.fixture
def full(new_recipe: Recipes) -> Recipe:
    return new_recipe({"student.kind": "full", "student.save_precision": "bf16", "critic.warmup": 0, **PLACES})


def test_a_full_copy_is_handed_out_in_its_precision(new_program: Programs, full: Recipe, tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    program, files = saved(new_program, full, tmp_path)
    native, folder = files
    assert sorted(path.name for path in tmp_path.joinpath("student").iterdir()) == sorted(path.name for path in files)
    learned = program.student.learned()
    assert {weight.dtype for weight in learned.values()} == {torch.float32}  # the training's own numbers stay
    loaded = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    weights, _ = read_safetensors(folder / "diffusion_pytorch_model.safetensors")
    for name, weight in loaded.state_dict().items():
        kept = {"time_embedder", "scale_shift_table", "norm2"} & set(name.split("."))
        assert weight.dtype == weights[name].dtype == (torch.float32 if kept else torch.bfloat16), name
        assert torch.equal(weight, weights[name]) and torch.equal(weight, learned[name].to(weight.dtype)), name
    assert {weight.dtype for weight in read_safetensors(native)[0].values()} == {torch.bfloat16}


def test_a_folder_says_what_the_native_file_says(new_program: Programs, full: Recipe, tmp_path: Path) -> None:
    _, (native, folder) = saved(new_program, full, tmp_path)
    text = (folder / "w2svd.json").read_text()
    assert json.loads(text)["schedules"][0]["sampler"] == "renoise"
    about = LoraMetadata.from_strings({"w2svd": text})
    assert about == LoraMetadata.from_strings(read_safetensors(native)[1]) is not None
    assert about is not None and about.default.sigmas == full.student.sigmas and about.base_precision == "fp32"


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_no_place_of_the_machine_travels(new_program: Programs, new_recipe: Recipes, tmp_path: Path, kind: str) -> None:
    recipe = new_recipe({"student.kind": kind, "critic.warmup": 0, **PLACES})
    _, files = saved(new_program, recipe, tmp_path)
    found = [path for file in files for path in ([file] if file.is_file() else file.iterdir())]
    assert len(found) == (4 if kind == "full" else 2)
    assert [path.name for path in found if b"somebody" in path.read_bytes()] == []
    if kind == "full":
        (tmp_path / "recipe.yaml").write_text(read_safetensors(files[0])[1]["recipe"])
        assert load_recipe(tmp_path / "recipe.yaml") == without_places(recipe)


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/home/me/clips", "clips"),
        ("/home/me/clips/", "clips"),
        ("../clips", "clips"),
        ("C:\\Users\\me\\clips", "clips"),
        ("teacher.safetensors", "teacher.safetensors"),
        ("bundled", "bundled"),
        ("portraits", "portraits"),
    ],
)
def test_of_a_place_the_last_name_is_kept(path: str, kept: str) -> None:
    recipe = check_recipe({"data.folder": path, "model.path": path, "data.cache": path, "seed": 3}, "in a test")
    found = without_places(recipe)
    assert (found.data.folder, found.model.path, found.data.cache, found.seed) == (kept, kept, "", 3)
    assert without_places(check_recipe({}, "in a test")) == check_recipe({}, "in a test")


# ---- folders


def put(path: Path, text: str) -> None:
    with whole_folder(path) as folder:
        (folder / "x.txt").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_takes_the_place_of_the_older_one(tmp_path: Path) -> None:
    put(tmp_path / "new" / "out", "one")
    (tmp_path / "new" / "out" / "extra.txt").write_text("of the older one")
    put(tmp_path / "new" / "out", "two")
    assert names(tmp_path / "new") == ["out", "out/x.txt"]
    assert (tmp_path / "new" / "out" / "x.txt").read_text() == "two"
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "new" / "out").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_older_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    put(tmp_path / "out", "older")
    with pytest.raises(error), whole_folder(tmp_path / "out") as folder:
        (folder / "x.txt").write_text("half")
        raise error
    assert names(tmp_path) == ["out", "out/x.txt"] and (tmp_path / "out" / "x.txt").read_text() == "older"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*out: .*; free some space"):
        put(tmp_path / "file" / "out", "new")


def test_a_crash_between_the_renames_is_mended(tmp_path: Path) -> None:
    put(tmp_path / "out", "older")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    (tmp_path / ".out.new").mkdir()
    (tmp_path / ".out.new" / "y.txt").write_text("half")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as folder:
        assert names(folder) == [] and (tmp_path / "out" / "x.txt").read_text() == "older"
        raise RuntimeError
    assert names(tmp_path) == ["out", "out/x.txt"]


CRASH = """
import os, resource, sys
from pathlib import Path
import torch
from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Architecture
from w2svd_core.errors import guarded
from w2svd_core.files import whole_folder

family, path = backbone("wan"), Path(sys.argv[1])
model = family.build(Architecture(heads=2, head_dim=12, ffn_dim=32, layers=1, text_dim=16))

def door():
    with whole_folder(path) as folder:
        family.save_folder(model, folder, torch.float32)
        if sys.argv[2] == "crash":
            os._exit(3)
    return 0

if sys.argv[2] == "full disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
raise SystemExit(guarded(door))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full disk", "crash"])
def test_a_full_disk_or_a_crash_leaves_an_older_folder_whole(tmp_path: Path, how: str) -> None:
    pytest.importorskip("resource")
    put(tmp_path / "out", "older")
    command = [sys.executable, "-c", CRASH, str(tmp_path / "out"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (tmp_path / "out" / "x.txt").read_text() == "older" and names(tmp_path / "out") == ["x.txt"]
    if how == "crash":
        assert done.returncode == 3
    else:
        assert done.returncode == 2 and names(tmp_path) == ["out", "out/x.txt"]
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"error: cannot write {tmp_path / 'out'}: "), done.stderr
    put(tmp_path / "out", "newer")
    assert names(tmp_path) == ["out", "out/x.txt"]


def test_the_file_says_what_was_mixed(new_recipe: Recipes) -> None:
    from w2svd_core.students import mixture

    assert mixture(new_recipe()) == "w2s" and mixture(new_recipe({"matching.alpha_weak": 0.0})) == "dmd"
    both = {"matching.alpha_weak": 0.0, "data_forcing.probability": 0.5, "adversarial.weight": 0.1}
    assert mixture(new_recipe(both)) == "dmd+adversarial+data_forcing"
    assert mixture(new_recipe({"matching.weight": 0.0, "adversarial.weight": 0.1})) == "adversarial"
    truth = {"matching.ground_truth_weight": 1.0, "rollout.source": "noised_data"}
    assert mixture(new_recipe(truth)) == "w2s+ground_truth"


def test_a_method_without_a_real_score_has_no_shift_and_no_guidance(new_program: Programs, new_recipe: Recipes) -> None:
    from w2svd_core.students import student_metadata

    for weight, expected in ((1.0, (0.25, 1.5)), (0.0, (None, None))):
        recipe = new_recipe({"matching.weight": weight, "adversarial.weight": 0.1, "matching.guidance_scale": 1.5})
        about = student_metadata(recipe, new_program(recipe).model)
        assert (about.alpha_weak, about.teacher_guidance) == expected
