"""What else a user may do with clips and a model, shown on a Wan; the way of every kind: `test_family_doors`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from door_parts import Door, student
from family_house import House
from tiny_wan import FRAMES, PROMPTS
from video_files import write
from wan_kinds import WAN

from w2svd_core import prepare, sample, train
from w2svd_core.files import read_safetensors

T2V = WAN[0]


def test_clips_of_two_shapes_are_distilled_together(tmp_path: Path, door: Door) -> None:
    made = House(T2V, tmp_path, first_frame=False)
    made.small[made.small.index("--train.steps") + 1] = 4
    buckets = ["--data.buckets", 2, "--data.height", 16, "--data.width", 32]
    tall = np.random.default_rng(1).integers(0, 256, (FRAMES, 32, 16, 3), dtype=np.uint8)
    write(tmp_path / "clips" / "tall.mkv", tall, "ffv1", "bgr0", rate=16)
    (tmp_path / "clips" / "tall.txt").write_text(PROMPTS[0])
    given = ["wan_t2v_1_3b", *made.model, *made.data, *buckets, *made.small]
    assert door(prepare.main, *given)[0] == 0
    assert door(train.main, *given, "--out", made.run)[0] == 0
    state, _ = read_safetensors(max((made.run / "checkpoints").iterdir()))
    shapes = {name.split("/")[1] for name in state if name.startswith("pool/")}
    assert len(shapes) == 2, shapes


@pytest.mark.slow
def test_a_whole_teacher_can_be_fine_tuned_first(tmp_path: Path, door: Door) -> None:
    """Its file lies elsewhere than its encoders, which are found all the same."""
    made = House(T2V, tmp_path, first_frame=False)
    recipe = [*made.recipe(), "--model.path", made.tiny.folder]
    for part in ("vae", "text_encoder", "tokenizer", "image_encoder"):
        recipe += [f"--model.{part}", ""]
    text = (tmp_path / "fine.yaml").read_text().replace("student: {rank: 2,", "student: {kind: full,")
    (tmp_path / "fine.yaml").write_text(text + "model: {precision: fp32}\n")
    assert door(prepare.main, *recipe)[0] == 0
    code, _, err = door(train.main, *recipe, "--out", made.run)
    assert code == 0, err
    _, header = read_safetensors(student(made.run))
    assert "teacher/student/student_model_comfyui.safetensors" in header["w2svd"]
    assert "student_model_comfyui.safetensors" in (made.run / "report.md").read_text()
    assert door(sample.main, made.run, *made.asked, "--out", tmp_path / "clip.mp4")[0] == 0
    shutil.rmtree(made.run / "student")
    shutil.rmtree(made.run / "teacher" / "student")
    (made.run / "teacher" / "student").mkdir()  # as a full disk leaves it
    code, _, err = door(train.main, "--resume", made.run)
    assert code == 0 and student(made.run).is_file(), err


def test_two_experts_are_refused_before_anything_is_encoded(tmp_path: Path, door: Door) -> None:
    made = House(T2V, tmp_path, first_frame=False)
    shutil.copytree(made.tiny.folder, tmp_path / "a14b")
    (tmp_path / "a14b" / "transformer_2").mkdir()
    given = ["wan_t2v_1_3b", *made.model, *made.data, "--model.path", tmp_path / "a14b"]
    code, _, err = door(prepare.main, *given)
    assert code == 2 and "two experts are not supported yet" in err and not (tmp_path / "cache").exists()


def test_parts_beside_a_single_file_are_found(tmp_path: Path, door: Door) -> None:
    made = House(T2V, tmp_path, first_frame=False)
    beside = tmp_path / "beside"
    shutil.copytree(made.tiny.folder, beside)
    shutil.copy(made.tiny.files["transformer"], beside / "wan.safetensors")
    given = ["wan_t2v_1_3b", *made.data, "--model.path", beside / "wan.safetensors"]
    assert door(prepare.main, *given)[0] == 0
