"""The portraits from an image: a teacher that is taught to start from a first frame, then distilled, by two stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from door_parts import Door
from wan_kinds import condition_of, new_wan, points_of

from w2svd_core import evaluate, sample, train
from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Architecture
from w2svd_core.condition import Condition
from w2svd_core.config import load_recipe
from w2svd_core.data.portraits import portrait_from_seed, render, render_folder
from w2svd_core.data.video import read_video, write_png, write_video
from w2svd_core.errors import UserError, guarded
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.stages import first_stage, with_trained_teacher

WAN = backbone("wan")


def test_a_widened_model_does_not_look_at_the_frame_yet() -> None:
    narrow = new_wan()
    wide = WAN.with_first_frame(narrow).eval()
    x_t, sigma, text = points_of("t2v"), torch.tensor([0.3, 0.9]), condition_of("t2v", 2)
    start = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = WAN.predict(narrow, x_t, sigma, text)
        after = WAN.predict(wide, x_t, sigma, Condition({**text.fields, "start": start}))
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
    assert WAN.facts(wide).needs == ("text", "start")
    assert narrow.get_parameter("patch_embedding.weight").shape[1] == 16  # the given model stays as it was


@pytest.mark.parametrize("kind", ["i2v", "ti2v"])
def test_only_a_text_to_video_model_is_widened(kind: str) -> None:
    with pytest.raises(UserError, match="name a text-to-video model"):
        WAN.with_first_frame(new_wan(kind))


# ---- through the doors


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    torch.manual_seed(0)
    model = WAN.build(Architecture(heads=1, head_dim=16, ffn_dim=32, layers=1, text_dim=64))
    torch.nn.init.normal_(model.get_parameter("proj_out.weight"), std=0.1)
    write_safetensors(folder / "teacher.safetensors", WAN.native_state(model), WAN.native_metadata(model))
    render_folder(folder / "clips", 4, 0, 5, 32, 32, 8.0)
    fine = "base: portraits_image_teacher\nname: small_teacher\nmodel: {compile: false}\n"
    fine += "train: {steps: 2, batch: 2, tracker: none}\nstudent: {lr: 0.02, ema: 0}\n"
    (folder / "fine.yaml").write_text(fine)
    return folder


def settings(place: Path) -> list[str]:
    given = {
        "first": place / "fine.yaml", "model.path": place / "teacher.safetensors",
        "data.folder": place / "clips", "data.cache": place / "cache",
        "data.frames": 5, "data.height": 32, "data.width": 32, "data.fps": 8,
        "student.rank": 2, "critic.rank": 2, "critic.warmup": 1, "critic.updates": 1, "train.steps": 2,
        "train.batch": 2, "teacher.steps": 2, "evaluate.clips": 0, "train.tracker": "none",
    }  # fmt: skip
    return [text for key, value in given.items() for text in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    assert guarded(lambda: train.main(["portraits_image", *settings(place), "--out", str(place / "run")])) == 0
    return place / "run"


def test_the_first_stage_taught_the_new_channels(run: Path) -> None:
    tensors, _ = read_safetensors(run / "teacher" / "student" / "student_model_comfyui.safetensors")
    weight = tensors["patch_embedding.weight"]
    assert weight.shape[1] == 36 and weight[:, 16:].abs().max() > 0
    recipe = with_trained_teacher(load_recipe(run / "recipe.yaml"), run)
    assert recipe.model.path.endswith("student_model_comfyui.safetensors") and recipe.model.init == "load"


def test_another_picture_is_another_clip(run: Path, place: Path, door: Door) -> None:
    made = []
    for seed in (0, 1):
        picture = render(portrait_from_seed(seed), 5, 48, 64, 8.0)[0]
        write_png(place / f"{seed}.png", picture)
        write_video(place / f"{seed}.mp4", picture[None], 8.0)
        for kind in ("png", "mp4"):
            out = place / f"{seed}-{kind}.mp4"
            asked = ["--prompt", "a person, talking", "--image", place / f"{seed}.{kind}", "--out", out]
            assert door(sample.main, run, *asked)[0] == 0
        made.append(read_video(place / f"{seed}-png.mp4").astype(float))
        assert abs(made[-1] - read_video(place / f"{seed}-mp4.mp4")).mean() < 8  # the same picture, once through mp4
    assert abs(made[0] - made[1]).mean() > 1


def test_without_a_picture_it_says_so(run: Path, door: Door) -> None:
    code, _, err = door(sample.main, run, "--prompt", "talking")
    assert code == 2 and "name an image or a video in --image" in err


def test_vbench_takes_prompts_with_their_first_frames(run: Path, place: Path, door: Door) -> None:
    (place / "p.txt").write_text("talking\n")
    asked = [run, "--clips", 0, "--vbench", place / "vbench", "--prompts", place / "p.txt"]
    code, _, err = door(evaluate.main, *asked)
    assert code == 2 and "needs a first frame for each prompt" in err
    code, _, err = door(evaluate.main, *asked, "--images", place / "clips")
    assert code == 2 and "has no picture for the prompt 'talking'; name it talking.png" in err
    write_png(place / "pictures" / "talking.png", render(portrait_from_seed(3), 5, 48, 64, 8.0)[0])
    code, out, err = door(evaluate.main, *asked, "--images", place / "pictures")
    assert code == 0 and "vbench evaluate" in out, err
    made = place / "vbench" / "run"
    assert len(list((made / "videos").iterdir())) == 5 and (made / "images" / "talking.png").is_file()


@pytest.mark.slow
def test_the_table_has_a_column_of_identity(run: Path, place: Path, door: Door) -> None:
    held_out = ["--data.folder", "portraits", "--data.clips", 4]
    code, _, err = door(evaluate.main, run, "--clips", 64, *held_out, "--out", place / "table.md")
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads((place / "table.json").read_text())["rows"]}
    assert all("identity" in row for row in rows.values())
    assert rows["data"]["identity"] > 0.8 > rows["run: student, 4 steps"]["identity"]


# ---- the stages


@pytest.mark.parametrize("name", ["portraits", "wan_portraits"])
def test_what_is_no_fine_tune_can_not_come_first(name: str) -> None:
    with pytest.raises(UserError, match="no fine-tune"):
        first_stage(load_recipe("portraits_image", {"first": name}))


def test_the_first_stage_has_the_clips_of_the_second() -> None:
    recipe = load_recipe("portraits_image", {"data.clips": "7", "seed": "3"})
    fine = first_stage(recipe)
    assert fine.method == "flow_matching" and fine.model.init == "first_frame" and fine.model.compile
    assert (fine.data, fine.seed, fine.evaluate.clips) == (recipe.data, 3, 0)


def test_an_unfinished_first_stage_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no fine-tuned teacher yet; finish it with --resume"):
        with_trained_teacher(load_recipe("portraits_image"), tmp_path)


def test_without_one_a_recipe_stays_as_it_is(tmp_path: Path) -> None:
    recipe = load_recipe("portraits")
    assert with_trained_teacher(recipe, tmp_path) is recipe
