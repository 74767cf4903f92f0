"""The doors, called in this process with a tiny random teacher and four tiny clips."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from door_parts import Door, base, panels_drawn, refused, student, tiny, write_teacher
from PIL import Image

from w2svd_core import evaluate, sample, train
from w2svd_core.assembly import bundled_encoders
from w2svd_core.backbones import backbone
from w2svd_core.backbones.base import Architecture
from w2svd_core.config import all_settings, load_recipe
from w2svd_core.data.codec import decode_pixels
from w2svd_core.data.portraits import render_folder
from w2svd_core.data.video import read_video
from w2svd_core.files import read_safetensors, write_safetensors

PROMPT = "talking, long brown hair"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two teachers and four clips of 5 frames, 32 x 32 px."""
    folder = tmp_path_factory.mktemp("doors")
    write_teacher(folder / "teacher.safetensors", 0)
    write_teacher(folder / "other.safetensors", 1)
    render_folder(folder / "clips", 4, 0, 5, 32, 32, 8.0)
    return folder


@pytest.fixture(scope="session")
def run(place: Path) -> Path:
    """A finished run without an evaluation, with all its plots."""
    with panels_drawn():
        assert train.main([*tiny(place), "--out", str(place / "run")]) == 0
    return place / "run"


@pytest.fixture(scope="session")
def full_run(place: Path) -> Path:
    """A finished run whose student is a full copy."""
    assert train.main([*tiny(place), "--student.kind", "full", "--out", str(place / "full")]) == 0
    return place / "full"


def pixels(path: Path) -> np.ndarray:
    return read_video(path)


# ---- train


def test_a_run_folder_is_complete(run: Path) -> None:
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    plots = {f"plots/{name}.png" for name in ("losses", "scores", "gradients", "student")}
    files = {"student/student_comfyui.safetensors", "student/student_diffusers.safetensors"}
    assert found >= {"recipe.yaml", "metrics.jsonl", "report.md", *plots, *files}
    assert len([name for name in found if name.startswith("checkpoints/")]) == 2
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert "was no evaluation" in (run / "report.md").read_text()


def test_a_run_ends_with_its_table_and_pictures(place: Path, door: Door) -> None:
    out = place / "measured"
    more = ["--evaluate.clips", "50", "--train.steps", "1", "--train.tracker", "tensorboard"]
    portraits = ["--data.folder", "portraits", "--data.clips", "4"]
    code, shown, _ = door(train.main, *tiny(place), *more, *portraits, "--out", out)
    assert code == 0 and f"Look at {out / 'report.md'}" in shown
    samples = {path.name for path in (out / "samples").iterdir()}
    assert samples >= {"side-by-side.mp4", "contact_sheet.png", "data-5.mp4", "student-4-steps-5.mp4"}
    report = (out / "report.md").read_text()
    assert "| student, 4 steps | 4 |" in report and "video Fréchet distance is" in report
    assert list(out.rglob("events.out.tfevents*"))


def test_a_run_on_own_clips_is_measured_on_them(place: Path, door: Door) -> None:
    out = place / "measured on own clips"
    more = ["--evaluate.clips", "50", "--train.steps", "1"]
    assert door(train.main, *tiny(place), *more, "--out", out)[0] == 0
    samples = {path.name for path in (out / "samples").iterdir()}
    assert samples >= {"side-by-side.mp4", "contact_sheet.png", "data-3.mp4", "student-4-steps-3.mp4"}
    assert not samples & {"data-4.mp4", "student-4-steps-4.mp4"}  # there are four clips and so four captions
    data = [pixels(out / "samples" / f"data-{i}.mp4").astype(int) for i in range(4)]
    clips = [pixels(place / "clips" / f"000000{i}.mp4").astype(int) for i in range(4)]
    assert all(np.abs(one - other).mean() < 4 for one, other in zip(data, clips, strict=True))  # both went through x264
    report = (out / "report.md").read_text()
    assert "There is no Fréchet distance for the 4-step student" in report and "They are not held out" in report
    assert "50 clips in each row of a model" in report and "; 4 in the rows of data" in report
    assert "| student, 4 steps | 4 |" in report and "Fréchet video" not in report


def test_resume_goes_on_and_takes_nothing_else(place: Path, run: Path, door: Door) -> None:
    part = place / "part"
    assert train.main([*tiny(place), "--train.steps", "1", "--out", str(part)]) == 0
    text = (part / "recipe.yaml").read_text().replace("  steps: 1\n", "  steps: 2\n")
    (part / "recipe.yaml").write_text(text)
    assert "leave out" in refused(door(train.main, "--resume", part, "--train.steps", "3"))
    assert "leave out" in refused(door(train.main, "portraits_dmd", "--resume", part))
    assert door(train.main, "--resume", part)[0] == 0
    assert load_recipe(part / "recipe.yaml") == load_recipe(run / "recipe.yaml")
    once, twice = (read_safetensors(student(path))[0] for path in (run, part))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert [json.loads(line)["step"] for line in (part / "metrics.jsonl").open()] == [1, 2, 3]


def test_train_refuses(place: Path, run: Path, door: Door) -> None:
    assert "did you mean --student.lr" in refused(door(train.main, "--student.lrr", "1"))
    assert "a number from 0 to 0.1" in refused(door(train.main, "--student.lr", "9"))
    assert "holds a run already" in refused(door(train.main, *tiny(place), "--out", run))
    assert "no recipe.yaml" in refused(door(train.main, "--resume", place))
    assert "latent" not in refused(door(train.main, *tiny(place), "--data.frames", "6", "--out", place / "x1"))
    assert "is not a folder" in refused(door(train.main, *tiny(place), "--data.folder", "no", "--out", place / "x1"))
    assert "only for method flow_matching" in refused(door(train.main, *tiny(place), "--model.compile", "true"))
    assert not (place / "x1").exists()  # so that the same command can be given again


def test_resume_refuses_a_run_of_another_recipe(place: Path, run: Path, door: Door) -> None:
    part = place / "other-recipe"
    shutil.copytree(run, part)
    text = (part / "recipe.yaml").read_text()
    (part / "recipe.yaml").write_text(text.replace("  batch: 2\n", "  batch: 1\n", 1))
    assert "train.batch 2" in refused(door(train.main, "--resume", part))
    (part / "recipe.yaml").write_text(text.replace("teacher.safetensors", "other.safetensors"))
    assert "another model" in refused(door(train.main, "--resume", part))
    render_folder(place / "other clips", 4, 100, 5, 32, 32, 8.0)
    (part / "recipe.yaml").write_text(text.replace(str(place / "clips"), str(place / "other clips")))
    code, _, err = door(train.main, "--resume", part)  # its last line comes after a progress bar
    assert code == 2 and "other clips, prompts or encoders than" in err.splitlines()[-1]
    longer = text.replace("  steps: 2\n", "  steps: 1\n")
    assert longer != text
    (part / "recipe.yaml").write_text(longer)
    code, _, err = door(train.main, "--resume", part)
    assert code == 2 and "has 2 updates behind it, and train.steps is 1; raise it to 2 or more" in err.splitlines()[-1]
    newest = max((part / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    (part / "recipe.yaml").write_text(text)
    assert f"{newest} is not a whole checkpoint" in refused(door(train.main, "--resume", part))


def test_a_run_goes_on_from_another_folder(place: Path, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    paths = ["--model.path", "teacher.safetensors", "--data.folder", "clips", "--data.cache", "cache"]
    assert train.main([*tiny(place), *paths, "--train.steps", "1", "--out", "relative"]) == 0
    monkeypatch.chdir("/")
    text = (place / "relative" / "recipe.yaml").read_text()
    (place / "relative" / "recipe.yaml").write_text(text.replace("  steps: 1\n", "  steps: 2\n"))
    assert door(train.main, "--resume", place / "relative")[0] == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_base_in_half_precision_is_distilled(place: Path, tmp_path: Path, precision: str) -> None:
    assert train.main([*tiny(place), "--model.precision", precision, "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert sum(row.get("student/skipped", 0) + row["critic/skipped"] for row in rows) == 0
    assert rows[-1]["student/gradient_norm"] > 0 and rows[-1]["critic/gradient_norm"] > 0
    ups = [t for name, t in read_safetensors(student(tmp_path / "run"))[0].items() if "lora_up" in name]
    assert ups and all(t.abs().sum() > 0 for t in ups)


def test_a_model_of_another_kind_is_refused(place: Path, tmp_path: Path, door: Door) -> None:
    family = backbone("wan")
    wide = family.build(Architecture(heads=1, head_dim=16, ffn_dim=32, layers=1, text_dim=32))
    write_safetensors(tmp_path / "wide.safetensors", family.native_state(wide), family.native_metadata(wide))
    wrong = ["--model.path", tmp_path / "wide.safetensors", "--out", tmp_path / "x"]
    assert "prompt embeddings 32 wide" in refused(door(train.main, *tiny(place), *wrong))


@pytest.mark.parametrize("main", [train.main, sample.main, evaluate.main])
def test_help_names_every_setting(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(f"--{key} VALUE" in shown for key in all_settings())


# ---- sample


def test_run_and_both_lora_files_give_the_same_clip(place: Path, run: Path, door: Door) -> None:
    clips = {}
    sources = {"run": [run], "native": [student(run), *base(place)]}
    sources["diffusers"] = [student(run, "diffusers"), *base(place)]
    for name, arguments in sources.items():
        out = place / f"{name}.mp4"
        code, _, err = door(sample.main, *arguments, "--prompt", PROMPT, "--seed", 7, "--out", out)
        assert (code, err) == (0, "")
        clips[name] = pixels(out)
    assert clips["run"].shape == (5, 32, 32, 3)
    assert np.array_equal(clips["run"], clips["native"])
    assert np.array_equal(clips["run"], clips["diffusers"])


def test_a_clip_depends_on_its_seed_alone(place: Path, run: Path, door: Door) -> None:
    more = ["--prompt", PROMPT, "--prompt", "silent", "--count", 2, "--seed", 6, "--out", place / "some.mp4"]
    code, out, _ = door(sample.main, run, *more)
    assert code == 0 and len(out.splitlines()) == 4
    names = [f"some-{i}.mp4" for i in range(4)]
    several = [pixels(place / name) for name in names]
    door(sample.main, run, "--prompt", PROMPT, "--seed", 7, "--out", place / "one.mp4")
    assert np.array_equal(several[1], pixels(place / "one.mp4"))
    assert not np.array_equal(several[0], several[1]) and not np.array_equal(several[1], several[3])


def test_a_clip_comes_as_video_frames_or_latents(place: Path, run: Path, door: Door) -> None:
    common = [run, "--prompt", PROMPT, "--seed", 7, "--out"]
    for name in ("frames", "latents.safetensors", "form.mp4"):
        assert door(sample.main, *common, place / name)[0] == 0
    frames = np.stack([np.asarray(Image.open(path)) for path in sorted((place / "frames").iterdir())])
    tensors, about = read_safetensors(place / "latents.safetensors")
    assert about["prompt"] == PROMPT and about["seed"] == "7" and about["fps"] == "8"
    decoded = decode_pixels(bundled_encoders().codec, tensors["latents"])[0]
    assert np.array_equal(frames, decoded)
    assert np.abs(frames.astype(float) - pixels(place / "form.mp4")).mean() < 16  # noise in 4:2:0; of another seed: 50
    assert "with files in it" in refused(door(sample.main, *common, place / "frames"))
    assert len(list((place / "frames").iterdir())) == 5


def test_clips_for_vbench(place: Path, run: Path, door: Door) -> None:
    """Five of each prompt, and nothing is made twice."""
    (place / "vbench.txt").write_text("talking, red hair\na person with a blue shirt\n")
    asked = [run, "--clips", 0, "--vbench", place / "vbench", "--prompts", place / "vbench.txt"]
    code, out, err = door(evaluate.main, *asked)
    assert code == 0 and "vbench evaluate --mode=custom_input" in out, err
    videos = place / "vbench" / "run" / "videos"
    names = sorted(path.name for path in videos.iterdir())
    assert names == [f"{p}-{i}.mp4" for p in ("a person with a blue shirt", "talking, red hair") for i in range(5)]
    clips = [pixels(videos / name) for name in names]
    assert all(clip.shape == (5, 32, 32, 3) for clip in clips)
    assert len({clip.tobytes() for clip in clips}) == 10
    (videos / names[3]).unlink()
    before = (videos / names[4]).stat().st_mtime_ns
    assert door(evaluate.main, *asked)[0] == 0
    assert np.array_equal(pixels(videos / names[3]), clips[3]) and (videos / names[4]).stat().st_mtime_ns == before
    assert "name a file of them in --prompts" in refused(door(evaluate.main, *asked[:-2]))


def test_other_step_counts_are_warned_of(place: Path, run: Path, door: Door) -> None:
    common = [run, "--prompt", PROMPT, "--out", place / "two.mp4"]
    code, _, err = door(sample.main, *common, "--steps", 2)
    assert code == 0 and err.startswith("warning: ") and "trained for 4 steps" in err and "1, 0.6667, 0" in err
    assert len(err.splitlines()) == 1
    assert door(sample.main, *common, "--steps", 4)[2] == ""
    assert "by renoise" in door(sample.main, *common, "--student.sampler", "renoise")[2]
    assert "sigmas 1, 0.5, 0" in door(sample.main, *common, "--student.sigmas", "1,0.5,0")[2]


def test_the_teacher_needs_no_file(place: Path, run: Path, door: Door) -> None:
    alone = [
        "--teacher",
        *base(place),
        "--teacher.steps",
        3,
        "--prompt",
        PROMPT,
        "--out",
        place / "alone.mp4",
    ]
    code, out, err = door(sample.main, *alone)
    assert code == 0 and err == "" and "3 steps" in out
    door(sample.main, run, "--teacher", "--prompt", PROMPT, "--out", place / "of-run.mp4")
    assert np.array_equal(pixels(place / "alone.mp4"), pixels(place / "of-run.mp4"))
    guided = [*alone[:-1], place / "guided.mp4", "--teacher.guidance_scale", 3]
    assert door(sample.main, *guided)[0] == 0
    assert not np.array_equal(pixels(place / "alone.mp4"), pixels(place / "guided.mp4"))


def test_a_full_student_is_sampled(place: Path, full_run: Path, door: Door) -> None:
    out = place / "full.mp4"
    code, _, err = door(sample.main, full_run, "--prompt", PROMPT, "--out", out)
    assert (code, err) == (0, "")
    door(sample.main, full_run, "--teacher", "--steps", 4, "--prompt", PROMPT, "--out", place / "base.mp4")
    assert not np.array_equal(pixels(out), pixels(place / "base.mp4"))
    assert (full_run / "student/transformer/config.json").is_file()


def test_sample_refuses(place: Path, run: Path, door: Door) -> None:
    prompt = ["--prompt", PROMPT, "--out", place / "never.mp4"]
    other = base(place, "other")
    assert "another base" in refused(door(sample.main, student(run), *other, *prompt))
    assert "another base" in refused(door(sample.main, run, *other[-2:], *prompt))
    assert "holds no LoRA" in refused(door(sample.main, place / "other.safetensors", *base(place), *prompt))
    assert "is not there" in refused(door(sample.main, place / "nothing.safetensors", *prompt))
    assert "no recipe.yaml" in refused(door(sample.main, place / "clips", *prompt))
    assert "--prompt is missing" in refused(door(sample.main, run))
    assert "name a run folder or a LoRA" in refused(door(sample.main, *prompt))
    assert "There is no option --stepz; did you mean --steps" in refused(door(sample.main, run, "--stepz", 4))
    assert "must be a whole number from 1 to 1000" in refused(door(sample.main, run, "--steps", 0))
    assert "must end in one of" in refused(door(sample.main, run, *prompt, "--out", "x.gif"))
    assert not (place / "never.mp4").exists()


def test_sample_refuses_broken_files(place: Path, run: Path, door: Door) -> None:
    prompt = ["--prompt", PROMPT, "--out", place / "never.mp4", *base(place)]
    truncated, pickled = place / "short.safetensors", place / "pickled.safetensors"
    truncated.write_bytes(student(run).read_bytes()[:-50])
    pickled.write_bytes(pickle.dumps({"a": 1}))
    assert "not a whole safetensors file" in refused(door(sample.main, truncated, *prompt))
    assert "pickled" in refused(door(sample.main, pickled, *prompt))
    empty = place / "unfinished"
    empty.mkdir()
    (empty / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    assert "holds no student yet" in refused(door(sample.main, empty, *prompt))


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_a_fault_ends_a_door_with_one_line_and_code_2(name: str) -> None:
    command = [sys.executable, "-m", f"w2svd_core.{name}", "nothing", "--studnet.lr", "1"]
    root = Path(__file__).parent.parent
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stdout == ""
    near = "--student.lr or --critic.lr or --adversarial.lr"
    assert ended.stderr == f"error: There is no option --studnet.lr; did you mean {near}.\n"


# ---- evaluate


def test_evaluate_refuses(place: Path, run: Path, full_run: Path, door: Door) -> None:
    out = ["--out", place / "never.md"]
    assert "no recipe.yaml" in refused(door(evaluate.main, run, place / "clips", *out))
    assert "named twice" in refused(door(evaluate.main, run, run, *out))
    assert "even number" in refused(door(evaluate.main, run, "--clips", 20, *out))
    assert "evaluate.clips is many" in refused(door(evaluate.main, run, "--clips", "many", *out))
    assert "must end in .md" in refused(door(evaluate.main, run, "--out", "x.txt"))
    other = place / "other geometry"
    other.mkdir()
    (other / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace("frames: 5", "frames: 9"))
    assert "data.frames 9" in refused(door(evaluate.main, run, other, *out))
    text = (run / "recipe.yaml").read_text().replace(f"folder: {place / 'clips'}", "folder: elsewhere")
    (other / "recipe.yaml").write_text(text)
    assert "data.folder elsewhere" in refused(door(evaluate.main, run, other, *out))
    assert "--euler-search needs the Fréchet distance" in refused(door(evaluate.main, run, "--euler-search", *out))
    assert not (place / "never.md").exists()


@pytest.mark.slow
def test_a_table_of_two_runs(place: Path, run: Path, full_run: Path, door: Door) -> None:
    out = place / "table.md"
    both = [run, full_run, "--data.folder", "portraits"]
    code, shown, _ = door(evaluate.main, *both, "--clips", 50, "--out", out)
    assert code == 0 and "| teacher, 3 steps |" in shown
    found = json.loads(out.with_suffix(".json").read_text())
    names = [row["name"] for row in found["rows"]]
    models = ["teacher, 3 steps", "teacher, 4 Euler steps", "run: student, 4 steps", "full: student, 4 steps"]
    assert names == ["data", "data through mp4 and codec", *models]
    assert all(np.isfinite(row["frechet_video"]) for row in found["rows"])
    assert found["clips"] == 50 and found["data"] == {"folder": "portraits", "clips": 50}
    assert out.read_text().count("\n| ") == 6 + 1 and "50 clips in each row, all models" in out.read_text()


def test_a_table_on_own_clips(place: Path, run: Path, door: Door) -> None:
    out = place / "own.md"
    assert door(evaluate.main, run, "--clips", 50, "--out", out)[0] == 0
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["clips"] == 50 and found["data"] == {"folder": str(place / "clips"), "clips": 4}
    known = {"motion", "frozen_share", "flicker", "saturation", "sharpness"}
    assert all(set(row) == {"name", "steps", "guided"} | known for row in found["rows"])
    assert "They are not held out" in out.read_text() and "4 in the rows of data" in out.read_text()


@pytest.mark.slow
def test_the_best_euler_row_is_searched(place: Path, run: Path, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "SEARCHED_SHIFTS", (1.0, 5.0))
    monkeypatch.setattr(evaluate, "SEARCHED_GUIDANCE", (1.0, 2.5))
    monkeypatch.setattr(evaluate, "FURTHER_GUIDANCE", ())
    out = place / "searched.md"
    portraits = ["--data.folder", "portraits"]
    assert door(evaluate.main, run, *portraits, "--clips", 50, "--euler-search", "--out", out)[0] == 0
    found = json.loads(out.with_suffix(".json").read_text())
    best = min(found["euler_search"], key=lambda one: one["frechet_video"])
    row = next(row for row in found["rows"] if "best of 4" in row["name"])
    assert len(found["euler_search"]) == 4 and row["frechet_video"] == best["frechet_video"]
    assert f"shift {best['shift']:g}, guidance {best['guidance']:g}" in row["name"]
