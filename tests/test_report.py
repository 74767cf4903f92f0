"""The report: tables that say what is best, plots and pictures that open, and a text that leads to all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from door_parts import panels_drawn
from PIL import Image

from w2svd_core import plots
from w2svd_core.config import check_recipe
from w2svd_core.data.portraits import portrait_from_seed, render
from w2svd_core.data.video import read_video
from w2svd_core.evaluation import Row
from w2svd_core.files import write_safetensors
from w2svd_core.lora_metadata import LoraMetadata
from w2svd_core.metrics.measure import UNITS
from w2svd_core.pictures import contact_sheet, enlarge, grid, side_by_side, spread
from w2svd_core.plots import smooth, write_plots
from w2svd_core.report import compared, leavings, slug, write_report
from w2svd_core.run import RunFolder
from w2svd_core.settings import Recipe
from w2svd_core.students import schedule_of
from w2svd_core.tables import best_rows, findings, markdown_table, number, plain

FIRST = 1_000_000


CAPTIONS = ("a man with a hat", "a woman who laughs")


def row(name: str, steps: int | None, frechet: float, motion: float, guided: bool = False) -> Row:
    clips = np.stack([render(portrait_from_seed(FIRST + i), 5, 32, 32, 8.0) for i in range(2)])
    values = {"frechet_video": frechet, "motion": motion, "flicker": 2.0, "saturation": 60 + frechet / 10}
    return Row(name, steps, guided, values | ({"diversity": motion} if steps else {}), 64, CAPTIONS, clips)


def own(rows: list[Row]) -> list[Row]:
    """The same rows as they are with three clips of the user's."""
    known = ("motion", "flicker", "saturation")
    return [
        replace(one, values={name: one.values[name] for name in known}, clips=64 if one.steps else 3) for one in rows
    ]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        row("data", None, 1.0, 0.4),
        row("data through mp4 and codec", None, 2.0, 0.39),
        row("teacher, 28 steps", 28, 10.0, 0.36, guided=True),
        row("teacher, 4 Euler steps", 4, 30.0, 0.2),
        row("student, 4 steps", 4, 15.0, 0.38),
    ]


@pytest.fixture
def recipe() -> Recipe:
    size = {"data.frames": 5, "data.height": 32, "data.width": 32, "teacher.guidance_scale": 1.5}
    return check_recipe({**size, "evaluate.clips": 64}, "in a test")


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> RunFolder:
    folder = RunFolder.create(recipe, tmp_path / "my run")
    for step in range(1, 45):
        folder.log(step, {"critic/loss": 1.0 / step, "critic/gradient_norm": 2.0})
        if step > 4:
            folder.log(step, {"student/loss": float("nan") if step == 9 else 0.1, "score/cosine": 0.9})
    return folder


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.00012, "0.00012"), (0.5, "0.500"), (1.234, "1.23"), (-12.34, "-12.3"), (1234.5, "1234")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_the_table_marks_the_best_models(rows: list[Row]) -> None:
    assert best_rows(rows, "frechet_video") == {2}
    assert best_rows(rows, "motion") == {4}  # nearest to data
    assert best_rows(rows, "diversity") == {4}
    assert best_rows(rows, "flicker") == set()  # all alike
    lines = markdown_table(rows).splitlines()
    assert lines[0].startswith("| clips from | model calls | Fréchet video | motion (px/frame) |")
    assert lines[4] == "| teacher, 28 steps | 56 | **10.0** | 0.360 | 2.00 | **61.0** | 0.360 |"
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert f"- diversity: {UNITS['diversity']}." in lines
    assert plain(rows[0])["frechet_video"] == 1.0 and plain(rows[0])["steps"] is None


def test_the_headline_says_how_it_went(rows: list[Row]) -> None:
    headline, lines = findings(rows)
    assert headline.startswith("The 4-step student closes 75% of the gap that few steps open")
    assert "15.0" in headline and "30.0" in headline and "10.0" in headline
    assert lines[0] == "Motion: 106% of the teacher's (0.380 and 0.360)."
    assert "no better than the teacher with 4 Euler steps" in findings([*rows[:4], row("s", 4, 31, 1)])[0]
    better = [*rows[:2], row("teacher", 28, 30, 1), row("few", 4, 20, 1), row("s", 4, 5, 1)]
    assert "beats its teacher" in findings(better)[0]
    assert findings(rows[:2]) == ("", [])


def test_a_student_out_of_its_teachers_band_is_told(rows: list[Row], recipe: Recipe) -> None:
    assert leavings(recipe, rows) == [] == leavings(recipe, rows[:2])
    frozen = [*rows[:4], row("student, 4 steps", 4, 150.0, 0.18)]
    assert leavings(recipe, frozen) == [
        "Motion is out of the teacher's band: 0.5 of the teacher's, wanted 0.85 to 1.15.",
        "Saturation is out of the teacher's band: 1.23 of the teacher's, wanted 0.9 to 1.1.",
        "Diversity is out of the teacher's band: 0.5 of the teacher's, wanted 0.85 or more.",
    ]


def test_the_headline_says_that_own_clips_have_no_distance_and_are_not_held_out(rows: list[Row]) -> None:
    headline, lines = findings(own(rows))
    assert headline.startswith("There is no Fréchet distance for the 4-step student, because the clips are your own")
    assert "it was trained on these clips, so nothing here is held out" in headline
    assert [line.split(":")[0] for line in lines] == ["Motion", "Flicker", "Saturation"]


def test_frames_are_enlarged_and_chosen() -> None:
    assert enlarge(np.zeros((32, 24, 3), np.uint8)).shape == (128, 96, 3)
    large = np.zeros((480, 832, 3), np.uint8)
    assert enlarge(large) is large
    video = np.arange(17, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    assert [int(frame[0, 0, 0]) for frame in spread(video, 4)] == [0, 5, 11, 16]
    assert len(spread(video[:2], 4)) == 2


def test_pictures_hold_every_clip(rows: list[Row]) -> None:
    clips, heads = [one.shown for one in rows[:3]], [one.name for one in rows[:3]]
    captions = ["a person", "a very long caption " * 20]
    video = side_by_side(clips, heads, captions)
    assert video.shape[0] == 5 and video.shape[1] % 2 == 0 and video.shape[2] % 2 == 0
    assert video.shape[2] >= 3 * 128 and video[0].tobytes() != video[4].tobytes()
    sheet = contact_sheet(clips, heads, captions)
    assert sheet.shape[1] >= 3 * 4 * 128
    one = grid([[rows[0].shown[0, 0]]], ["data"], ["a person"])
    assert (one[:30] < 128).any()  # the name of the column
    assert grid([[rows[0].shown[0, 0]]], ["data"], [""]).shape[0] < one.shape[0]  # no caption takes no room


def test_smoothing_looks_back() -> None:
    assert smooth(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]


@pytest.fixture(autouse=True)
def all_panels() -> Iterator[None]:
    """Figures as users get them."""
    with panels_drawn():
        yield


def test_plots_of_whatever_there_is(tmp_path: Path) -> None:
    assert write_plots(tmp_path, [], []) == []
    losses = [{"step": 1, "student/loss": 0.1}, {"step": 2, "student/loss": float("inf")}]
    assert [path.name for path in write_plots(tmp_path, losses, [])] == ["losses.png"]
    watched = {"student/motion": 0.1, "student/std": 1.0}
    widths = []
    for more in ({}, {"student/diversity": 0.9}):  # runs of an older version have no diversity
        (path,) = write_plots(tmp_path, [{"step": 1, **watched, **more}], [])
        widths.append(Image.open(path).width)
    assert path.name == "student.png" and widths[1] == pytest.approx(1.5 * widths[0], abs=2)


def test_a_report_leads_to_everything(run: RunFolder, recipe: Recipe, rows: list[Row]) -> None:
    files = [run.path / "student/student_comfyui.safetensors", run.path / "student/student_diffusers.safetensors"]
    for file in files:
        write_safetensors(file, {"t": torch.zeros(1)})
    report = write_report(run, recipe, rows, files)
    text = report.read_text(encoding="utf-8")
    assert "FluxGuidance" not in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert report == run.path / "report.md" and len(links) >= 10
    assert [link for link in links if not (run.path / link).exists()] == []
    assert "closes 75%" in text and "guidance_scale 1.5" in text and "28 Euler steps" in text
    assert "64 clips in each row, all models with the same captions and seeds. Noise seeds from 1000000 on." in text
    assert "can be compared with each other and with nothing else" in text and "your own" not in text
    assert f"w2svd_core.sample '{run.path}'" in text
    assert "`lcm`" in text and "1, 0.9375, 0.8333333, 0.625, 0" in text and "cfg 1.0" in text
    assert {path.name for path in (run.path / "plots").iterdir()} >= {"losses.png", "evaluation.png"}
    assert read_video(run.path / "samples/student-4-steps-1.mp4").shape == (5, 32, 32, 3)
    assert read_video(run.path / "samples/side-by-side.mp4").shape[0] == 15
    assert not [path for path in run.path.rglob(".*")]  # nothing half-written
    columns = compared(rows)
    sheet = contact_sheet([one.shown for one in columns], [one.name for one in columns], CAPTIONS)
    assert np.array_equal(np.asarray(Image.open(run.path / "samples/contact_sheet.png")), sheet)


def test_a_report_says_which_guidance_the_student_is_told(run: RunFolder, recipe: Recipe) -> None:
    file = run.path / "student/student_comfyui.safetensors"
    schedule = replace(schedule_of(recipe), embedded_guidance=3.5)
    about = LoraMetadata("w2s", (schedule,), "x", "y")
    write_safetensors(file, {"t": torch.zeros(1)}, about.to_strings())
    text = write_report(run, recipe, [], [file]).read_text(encoding="utf-8")
    assert "- `FluxGuidance` on the prompt: 3.5, which the student was told in its training;" in text


@pytest.mark.parametrize(("family", "reason"), [("animatediff", "no motion modules"), ("cosmos", "reads .*'s prompts")])
def test_a_report_tells_no_way_through_comfyui_where_there_is_none(
    family: str, reason: str, run: RunFolder, recipe: Recipe
) -> None:
    other = recipe.model_copy(update={"model": recipe.model.model_copy(update={"family": family})})
    text = write_report(run, other, [], []).read_text(encoding="utf-8")
    assert re.search(f"Not in ComfyUI: .*{reason}.*; sample it as above", text) and "ManualSigmas" not in text


def test_a_report_has_the_settings_of_what_a_run_is_made_of(run: RunFolder) -> None:
    on = {"matching.weight": 0.0, "adversarial.weight": 0.5, "frame_matching.weight": 1.0}
    run.log(45, {"adversarial/right": 0.5, "adversarial/gradient_norm": 1.0, "other/right": 0.5})
    text = write_report(run, check_recipe(on, "in a test"), [], []).read_text(encoding="utf-8")
    assert "| adversarial.weight | 0.5 |" in text and "| frame_matching.way | latent |" in text
    assert "critic.rank" not in text and "data_forcing" not in text
    assert "![What the other terms logged](plots/terms.png)" in text and (run.path / "plots/terms.png").is_file()
    assert [panel.curves for panel in plots._of_terms(run.metrics())] == [("adversarial/right",)]


def test_a_report_on_own_clips_says_so(run: RunFolder, recipe: Recipe, rows: list[Row]) -> None:
    mine = recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": "my clips"})})
    text = write_report(run, mine, own(rows), []).read_text(encoding="utf-8")
    assert "64 clips in each row of a model, all models with the same captions and seeds; 3 in the rows of data" in text
    assert "Clips and captions are your own, from my clips. They are not held out" in text
    assert "There is no Fréchet distance" in text and "Fréchet video" not in text and "compared with" not in text
    assert (run.path / "plots/evaluation.png").is_file()


def test_a_report_without_an_evaluation(run: RunFolder, recipe: Recipe) -> None:
    text = write_report(run, recipe, [], []).read_text(encoding="utf-8")
    assert "There was no evaluation" in text and "contact_sheet" not in text
    assert not (run.path / "samples").exists()


def test_names_and_columns(rows: list[Row]) -> None:
    assert slug("teacher, 4 Euler steps") == "teacher-4-euler-steps"
    names = ["data", "teacher, 28 steps", "teacher, 4 Euler steps", "student, 4 steps"]
    assert [one.name for one in compared(rows)] == names
