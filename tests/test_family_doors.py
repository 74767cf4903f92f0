"""A model of every kind from clips to a LoRA through the doors: tiny pipelines of the real classes.

One kind goes the whole way always, some others the short way; the whole way of all of them is slow.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from door_parts import Door, student
from family_house import House
from kind import Kind
from kinds import KINDS
from tiny_wan import FRAMES, PROMPTS, picture

from w2svd_core import evaluate, export, prepare, sample, train
from w2svd_core.config import load_recipe
from w2svd_core.data.video import read_video
from w2svd_core.errors import guarded
from w2svd_core.files import read_safetensors
from w2svd_core.lora_files import read_lora

ALWAYS = ("wan-t2v",)
SHORT = ("hunyuan_video-replace", "cosmos-i2v")
OF_FILES = ("wan-i2v", "hunyuan_video-concat", "cosmos-t2v")  # the others are folders
WHOLE = [kind if str(kind) in ALWAYS else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


def house_of(kind: Kind, root: Path) -> House:
    return House(kind, root, files=str(kind) in OF_FILES)


@pytest.fixture(scope="module", params=WHOLE, ids=str)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> House:
    """Clips prepared, teacher fine-tuned, that teacher distilled."""
    made = house_of(request.param, tmp_path_factory.mktemp(str(request.param)))
    for main, given in ((prepare.main, made.recipe()), (train.main, [*made.recipe(), "--out", made.run])):
        assert guarded(lambda main=main, given=given: main([str(one) for one in given])) == 0  # type: ignore[misc]
    return made


@pytest.mark.parametrize("kind", [kind for kind in KINDS if str(kind) in SHORT], ids=str)
def test_the_short_way(kind: Kind, tmp_path: Path, door: Door) -> None:
    """Prepared, distilled and sampled, from the run and from its file."""
    made = house_of(kind, tmp_path)
    for main, given in ((prepare.main, made.plain), (train.main, [*made.plain, "--out", made.run])):
        code, _, err = door(main, *given)
        assert code == 0, err
    pairs, about = read_lora(student(made.run), kind.backbone.keys)
    assert about and about.base_hash
    assert all(bool(pair.up.any()) != name.startswith(kind.idle) for name, pair in pairs.items())
    place = ["--recipe", kind.recipe, *made.model, *made.data]
    for source in ([made.run], [student(made.run, "diffusers"), *place]):
        code, _, err = door(sample.main, *source, *made.asked, "--out", tmp_path / f"{len(source)}.safetensors")
        assert code == 0 and err == "", err
    run, file = (read_safetensors(tmp_path / f"{n}.safetensors")[0]["latents"] for n in (1, 2 + len(place) - 1))
    assert run.isfinite().all()
    torch.testing.assert_close(run, file, atol=1e-5, rtol=1e-5)
    if kind.picture in kind.backbone.facts(kind.new()).needs:
        code, _, err = door(sample.main, made.run, "--prompt", PROMPTS[0])
        assert code == 2 and "--image" in err


def test_both_stages_leave_a_lora_that_did_something(house: House) -> None:
    for run in (house.run / "teacher", house.run):
        tensors, header = read_safetensors(student(run))
        pairs, _ = read_lora(student(run), house.kind.backbone.keys)
        assert all(bool(pair.up.any()) != name.startswith(house.kind.idle) for name, pair in pairs.items())
        native = {house.kind.backbone.keys.native_module(name) for name in pairs}
        assert {f"diffusion_model.{name}.lora_up.weight" for name in native} <= tensors.keys()
        assert header["w2svd.sigmas"]
    assert load_recipe(house.run / "teacher" / "recipe.yaml").method == "flow_matching"


def test_a_run_resumes_to_the_same_student(house: House, door: Door) -> None:
    """From the checkpoint of an earlier step, and with the second stage not begun."""
    before, _ = read_safetensors(student(house.run))
    again = house.root / "again"
    shutil.copytree(house.run, again)
    shutil.rmtree(again / "student")
    newest = max((again / "checkpoints").iterdir())
    newest.unlink()
    assert door(train.main, "--resume", again)[0] == 0
    after, _ = read_safetensors(student(again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    shutil.rmtree(again / "checkpoints")
    shutil.rmtree(again / "student")
    (again / "metrics.jsonl").unlink()
    shutil.rmtree(again / "teacher" / "student")
    code, _, err = door(train.main, "--resume", again)
    assert code == 0 and "first stage: fine-tuning the teacher" in err
    after, _ = read_safetensors(student(again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    shutil.rmtree(again)


def test_run_and_file_sample_the_same_clip(house: House, door: Door) -> None:
    """The file needs the fine-tuned teacher as its base: `model.loras` names it."""
    out = house.root / "sampled"
    code, _, err = door(sample.main, house.run, *house.asked, "--out", out / "run.safetensors")
    assert code == 0 and err == "", err
    fine = f"{student(house.run / 'teacher')}"
    place = [*house.model, *house.data, "--model.loras", fine]
    code, _, err = door(
        sample.main, student(house.run, "diffusers"), "--recipe", house.kind.recipe, *place, *house.asked,
        "--out", out / "file.safetensors",
    )  # fmt: skip
    assert code == 0 and err == "", err
    run, file = (read_safetensors(out / f"{name}.safetensors")[0]["latents"] for name in ("run", "file"))
    assert run.shape == (1, *run.shape[1:]) and run.isfinite().all()
    torch.testing.assert_close(run, file, atol=1e-5, rtol=1e-5)
    stacked = [house.run, *house.asked, "--lora", f"{fine}@2", "--out", out / "stacked.safetensors"]
    assert door(sample.main, *stacked)[0] == 0
    more = read_safetensors(out / "stacked.safetensors")[0]["latents"]
    assert (more - run).abs().max() > 1e-4


def test_a_clip_and_prompts_from_a_file(house: House, door: Door) -> None:
    prompts, out = house.root / "prompts.txt", house.root / "clips-made" / "clip.mp4"
    prompts.write_text(f"{PROMPTS[0]}\n{PROMPTS[1]}\n")
    image = house.asked[2:]
    assert door(sample.main, house.run, "--prompts", prompts, *image, "--out", out)[0] == 0
    for number in range(2):
        assert read_video(out.with_name(f"clip-{number}.mp4")).shape == (FRAMES, *house.tiny.size, 3)


def test_the_image_is_the_first_frame(house: House, door: Door) -> None:
    """Another image is another clip; without one a model that needs it says so; one of text alone takes none."""
    if not house.image:
        picture(*house.tiny.size).save(house.root / "first.png")
        given = [*house.asked, "--image", house.root / "first.png", "--out", house.root / "started.safetensors"]
        code, _, err = door(sample.main, house.run, *given)
        assert code == 0 if house.does_both else code == 2 and ("from text alone" in err or "text-to-video" in err), err
        return
    made = []
    for seed in (0, 1):
        picture(*house.tiny.size, seed).save(house.root / f"{seed}.png")
        out = house.root / f"image-{seed}.safetensors"
        image = ["--image", house.root / f"{seed}.png"]
        assert door(sample.main, house.run, "--prompt", PROMPTS[0], *image, "--out", out)[0] == 0
        made.append(read_safetensors(out)[0]["latents"])
    assert (made[0] - made[1]).abs().max() > 0.01
    if house.kind.picture in house.kind.backbone.facts(house.kind.new()).needs:
        code, _, err = door(sample.main, house.run, "--prompt", PROMPTS[0])
        assert code == 2 and "--image" in err


def test_the_lora_is_exported_against_its_base(house: House, door: Door) -> None:
    fine, out = student(house.run / "teacher"), house.root / "merged"
    path = str(house.model[1])
    code, told, err = door(export.main, "merge", fine, student(house.run), "--model", path, "--out", out)
    assert code == 0 and "largest difference of the model's output" in told, err
    assert (out / "config.json").is_file()


@pytest.mark.slow
def test_a_table_of_own_clips(house: House, door: Door) -> None:
    """Motion, colours and the like; the bundled networks know portraits alone."""
    code, told, err = door(evaluate.main, house.run, "--clips", 50, "--out", house.root / "table.md")
    assert code == 0, err
    assert "student, 4 steps" in told and "teacher, 2 steps" in told and "Fréchet" not in told.splitlines()[0]


def test_unprepared_clips_are_told(house: House, door: Door, tmp_path: Path) -> None:
    code, _, err = door(train.main, *house.recipe(), "--data.cache", tmp_path, "--out", tmp_path / "run")
    assert code == 2 and "python -m w2svd_core.prepare" in err and len(err.splitlines()) <= 2
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_adapters_start_from_a_lora_of_another_rank(house: House, tmp_path: Path, door: Door) -> None:
    """With a learning rate that moves nothing the student is the LoRA that it started from."""
    start = ["--student.init", student(house.run), "--student.rank", 3, "--critic.rank", 3, "--student.lr", 1e-30]
    given = [*house.recipe(), *start, "--model.loras", student(house.run / "teacher"), "--first", ""]
    code, _, err = door(train.main, *given, "--out", tmp_path / "run")
    assert code == 0, err
    before, after = (read_safetensors(student(run))[0] for run in (house.run, tmp_path / "run"))
    for name in before:
        if name.endswith("lora_up.weight"):
            down = name.replace("lora_up", "lora_down")
            found = after[name] @ after[down]
            torch.testing.assert_close(found, before[name] @ before[down], atol=1e-5, rtol=1e-4)
