"""VBench's folder: names, prompts, what is left to do, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from w2svd_core.data.video import read_video, write_video
from w2svd_core.errors import UserError
from w2svd_core.metrics.vbench import begin, file_stems, how_to_score, lay_out, write_first_frame

PROMPTS = ["A person is singing", "an ancient city with rock-carved façades", "A person is singing", "zoom 2-3 "]
BY = {"student": "abc", "sigmas": "1,0.5,0"}


def prompt_of(path: Path) -> str:
    """As VBench takes it from a name: without the last hyphen and number."""
    return re.sub(r"-\d+$", "", path.stem)


def test_names_are_those_of_the_standard_suite(tmp_path: Path) -> None:
    clips = lay_out(PROMPTS, tmp_path, seed=7)
    assert len(clips) == 15  # a repeated prompt is one
    assert [clip.path.name for clip in clips[:5]] == [f"A person is singing-{i}.mp4" for i in range(5)]
    assert all(prompt_of(clip.path) == clip.prompt for clip in clips)
    assert [clip.seed for clip in clips] == list(range(7, 22))
    assert {clip.path.parent for clip in clips} == {tmp_path / "videos"}
    assert len(lay_out(PROMPTS, tmp_path, count=25)) == 75


def test_prompts_that_no_file_can_be_named_by(tmp_path: Path) -> None:
    long = "é" * 200
    prompts = ["a/b", "a:b", "up\\down\nleft", long, long + "!", "a fantasy", "A fantasy"]
    stems = file_stems(prompts)
    assert len(set(stems.values())) == len(prompts) and stems["a/b"] == "a_b" and stems["a:b"].startswith("a_b ")
    assert stems["A fantasy"] == "A fantasy" and stems["a fantasy"] == "a fantasy"
    assert stems["up\\down\nleft"] == "up_down_left"
    for stem in stems.values():
        assert len(stem.encode()) <= 240
        (tmp_path / f"{stem}-24.mp4").touch()  # the disk takes it
    begin(tmp_path / "out", lay_out(prompts, tmp_path / "out"), BY)
    known = json.loads((tmp_path / "out" / "prompts.json").read_text(encoding="utf-8"))
    assert {name: prompt for name, prompt in known.items() if prompt == long + "!"} == {
        f"{stems[long + '!']}-{i}.mp4": long + "!" for i in range(5)
    }


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    clips = lay_out(PROMPTS[:1], tmp_path, seed=3)
    assert begin(tmp_path, clips, BY) == clips
    video = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    for clip in clips[:2]:
        write_video(clip.path, video, 8.0)
    assert [path.suffix for path in (tmp_path / "videos").iterdir()] == [".mp4"] * 2  # a stray file would hide all
    assert read_video(clips[0].path).shape == video.shape
    assert begin(tmp_path, clips, BY) == clips[2:]
    more = lay_out(PROMPTS, tmp_path, seed=3)
    assert begin(tmp_path, more, BY) == more[2:]  # prompts may join
    about = json.loads((tmp_path / "about.json").read_text(encoding="utf-8"))
    assert about["made_by"] == BY and len(about["clips"]) == 15
    assert about["clips"]["zoom 2-3-4.mp4"] == {"prompt": "zoom 2-3", "seed": 17}


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    clips = lay_out(PROMPTS[:1], tmp_path)
    begin(tmp_path, clips, BY)
    with pytest.raises(UserError, match="holds clips that something else has made"):
        begin(tmp_path, clips, BY | {"student": "other"})
    with pytest.raises(UserError, match=r"A person is singing-0\.mp4 stands for another prompt, seed or first frame"):
        begin(tmp_path, lay_out(PROMPTS[:1], tmp_path, seed=9), BY)
    (tmp_path / "videos" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt, which VBench would stumble over"):
        begin(tmp_path, clips, BY)
    for broken in ("{", "[]", '{"made_by": 1, "clips": {}}'):
        (tmp_path / "about.json").write_text(broken)
        with pytest.raises(UserError, match=r"about\.json .*choose another folder"):
            begin(tmp_path, clips, BY)
    for prompts, words in (([], "there is no prompt"), (["a", " "], "one of the prompts for VBench is empty")):
        with pytest.raises(UserError, match=words):
            lay_out(prompts, tmp_path)


def test_first_frames_carry_the_prompt_s_name(tmp_path: Path) -> None:
    picture = np.full((16, 16, 3), 200, dtype=np.uint8)
    path = write_first_frame(tmp_path, "zoom 2-3 ", PROMPTS, picture)
    assert path == tmp_path / "images" / "zoom 2-3.png"
    assert path.stem == prompt_of(lay_out(PROMPTS, tmp_path)[-1].path)
    assert np.array_equal(np.asarray(Image.open(path)), picture)


def test_the_commands_name_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my clips"
    text = how_to_score(folder)
    assert f"--videos_path '{folder / 'videos'}'" in text and f"--prompt_file '{folder / 'prompts.json'}'" in text
