"""A Wan from clips to a LoRA through the doors: tiny pipelines of the real classes, as folders and as single files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_wan import FRAMES, PROMPTS, TinyWan, picture, tiny_wan
from video_files import write

from w2svd_core import evaluate, export, prepare, sample, train
from w2svd_core.config import load_recipe
from w2svd_core.data.video import read_video
from w2svd_core.errors import guarded
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.settings import Model

Door = Callable[..., tuple[int, str, str]]
CASES = {"t2v": False, "i2v": True, "ti2v": False}  # kind -> from single files


class House:
    """One user's machine: a tiny Wan, two clips, and the command line that names them."""

    def __init__(self, kind: str, root: Path, first_frame: bool = False) -> None:
        self.tiny: TinyWan = tiny_wan(kind)
        self.root = root
        self.image = kind == "i2v" or first_frame
        model: Model = self.tiny.model_of_files() if CASES[kind] else self.tiny.model()
        named = ("path", "vae", "text_encoder", "tokenizer", "image_encoder")
        self.model = [part for name in named for part in (f"--model.{name}", getattr(model, name))]
        self.model += ["--model.first_frame", str(first_frame).lower(), "--model.precision", "fp32"]
        height, width = self.tiny.size
        self.data = ["--data.frames", FRAMES, "--data.height", height, "--data.width", width, "--data.buckets", 1]
        self.data += ["--data.folder", root / "clips", "--data.cache", root / "cache"]
        self.small = [
            *("--student.rank", 2, "--critic.rank", 2, "--critic.warmup", 1, "--critic.updates", 2),
            *("--train.steps", 2, "--train.batch", 2, "--train.checkpoint_every", 1, "--train.tracker", "none"),
            *("--student.lr", 0.01, "--critic.lr", 0.01, "--teacher.steps", 2),
        ]
        self.run = root / "run"
        clips(root / "clips", self.tiny)

    def recipe(self) -> list[object]:
        """The first stage is the fine-tune of the papers, small."""
        text = "base: wan_finetune\nname: small_finetune\nstudent: {rank: 2, lr: 0.01}\n"
        text += "train: {steps: 2, batch: 2, checkpoint_every: 1, tracker: none}\n"
        (self.root / "fine.yaml").write_text(text)
        return ["wan_t2v_1_3b", "--first", self.root / "fine.yaml", *self.model, *self.data, *self.small]

    @property
    def asked(self) -> list[object]:
        """What `sample` is given beside its source."""
        image = self.root / "first.png"
        if self.image and not image.exists():
            picture(*self.tiny.size).save(image)
        return ["--prompt", PROMPTS[0], *(["--image", image] if self.image else [])]


def clips(folder: Path, tiny: TinyWan) -> None:
    """Two clips, one of them longer and wider than wanted."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        coarse = rng.integers(0, 256, (FRAMES + number, 4, 4, 3), dtype=np.uint8)
        video = coarse.repeat(tiny.size[0] // 4, axis=1).repeat((1 + number) * tiny.size[1] // 4, axis=2)
        write(folder / f"{number}.mkv", video, "ffv1", "bgr0", rate=16)
        (folder / f"{number}.txt").write_text(PROMPTS[number])


@pytest.fixture
def door(capsys: pytest.CaptureFixture[str]) -> Door:
    """Call a door as the command line does: exit code, stdout, stderr."""

    def call(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = guarded(lambda: main([str(argument) for argument in arguments]))
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


@pytest.fixture(
    scope="module", params=[pytest.param(case, marks=pytest.mark.slow) if case == "i2v" else case for case in CASES]
)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> House:
    """Clips prepared, teacher fine-tuned, that teacher distilled."""
    made = House(request.param, tmp_path_factory.mktemp(request.param), first_frame=request.param == "ti2v")
    for step in ((prepare.main, made.recipe()), (train.main, [*made.recipe(), "--out", made.run])):
        assert guarded(lambda step=step: step[0]([str(argument) for argument in step[1]])) == 0  # type: ignore[misc]
    return made


def student(run: Path, kind: str = "comfyui") -> Path:
    return run / "student" / f"student_{kind}.safetensors"


def test_both_stages_leave_a_lora_that_did_something(house: House) -> None:
    for run in (house.run / "teacher", house.run):
        tensors, header = read_safetensors(student(run))
        ups = [t for name, t in tensors.items() if name.endswith("lora_up.weight")]
        assert ups and all(t.abs().max() > 0 for t in ups)
        assert "diffusion_model.blocks.0.self_attn.q.lora_up.weight" in tensors
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
        sample.main, student(house.run, "diffusers"), "--recipe", "wan_t2v_1_3b", *place, *house.asked,
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
    """Another image is another clip; without one a model that needs it says so, one that does not takes none."""
    if not house.image:
        picture(*house.tiny.size).save(house.root / "first.png")
        code, _, err = door(sample.main, house.run, *house.asked, "--image", house.root / "first.png")
        assert code == 2 and "from text alone" in err
        return
    made = []
    for seed in (0, 1):
        picture(*house.tiny.size, seed).save(house.root / f"{seed}.png")
        out = house.root / f"image-{seed}.safetensors"
        image = ["--image", house.root / f"{seed}.png"]
        assert door(sample.main, house.run, "--prompt", PROMPTS[0], *image, "--out", out)[0] == 0
        made.append(read_safetensors(out)[0]["latents"])
    assert (made[0] - made[1]).abs().max() > 0.01
    if house.tiny.kind == "i2v":
        code, _, err = door(sample.main, house.run, "--prompt", PROMPTS[0])
        assert code == 2 and "--image" in err


def test_the_lora_is_exported_against_its_base(house: House, door: Door) -> None:
    fine, out = student(house.run / "teacher"), house.root / "merged"
    path = house.model[1]
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


def test_prompts_alone_are_enough(tmp_path: Path, door: Door) -> None:
    """Backward simulation needs no clips."""
    made = House("t2v", tmp_path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS[:2]))
    given = ["wan_t2v_1_3b", *made.model, *made.data, *made.small, "--data.prompts", prompts]
    shutil.rmtree(tmp_path / "clips")
    assert door(prepare.main, *given)[0] == 0
    code, _, err = door(train.main, *given, "--out", made.run)
    assert code == 0 and student(made.run).is_file(), err
    for key, value in (("--rollout.source", "noised_data"), ("--first", "wan_finetune"), ("--evaluate.clips", 50)):
        code, _, err = door(train.main, *given, key, value, "--out", tmp_path / "no")
        assert code == 2 and "prompts alone" in err


def test_clips_of_two_shapes_are_distilled_together(tmp_path: Path, door: Door) -> None:
    made = House("t2v", tmp_path)
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


def test_adapters_start_from_a_lora_of_another_rank(house: House, tmp_path: Path, door: Door) -> None:
    """With a learning rate of 0 the student is the LoRA that it started from."""
    start = ["--student.init", student(house.run), "--student.rank", 3, "--critic.rank", 3, "--student.lr", 0]
    given = [*house.recipe(), *start, "--model.loras", student(house.run / "teacher"), "--first", ""]
    code, _, err = door(train.main, *given, "--out", tmp_path / "run")
    assert code == 0, err
    before, after = (read_safetensors(student(run))[0] for run in (house.run, tmp_path / "run"))
    for name in before:
        if name.endswith("lora_up.weight"):
            down = name.replace("lora_up", "lora_down")
            found = after[name] @ after[down]
            torch.testing.assert_close(found, before[name] @ before[down], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_whole_teacher_can_be_fine_tuned_first(tmp_path: Path, door: Door) -> None:
    """Its file lies elsewhere than its encoders, which are found all the same."""
    made = House("t2v", tmp_path)
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


def test_a_lora_of_another_family_is_refused_everywhere(tmp_path: Path, door: Door) -> None:
    made, lora = House("t2v", tmp_path), tmp_path / "hunyuan.safetensors"
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 8), f"{stem}.lora_up.weight": torch.ones(24, 2)}
    write_safetensors(lora, tensors)
    given = ["wan_t2v_1_3b", *made.model, *made.data, *made.small]
    assert door(prepare.main, *given)[0] == 0
    for key in ("--model.loras", "--student.init"):
        code, _, err = door(train.main, *given, key, lora, "--out", tmp_path / "no")
        assert code == 2 and "hunyuan.safetensors has 2 keys that this model has no place for" in err
    asked = ["--teacher", "--recipe", "wan_t2v_1_3b", *made.model, *made.data, *made.asked]
    code, _, err = door(sample.main, *asked, "--lora", lora, "--out", tmp_path / "clip.mp4")
    assert code == 2 and "hunyuan.safetensors has 2 keys" in err


def test_shards_of_another_text_encoder_are_refused(tmp_path: Path, door: Door) -> None:
    """The same clips and model; only the text encoder's weights are others."""
    made = House("t2v", tmp_path)
    given = ["wan_t2v_1_3b", *made.model, *made.data, *made.small]
    assert door(prepare.main, *given)[0] == 0
    tensors, _ = read_safetensors(made.tiny.files["text_encoder"])
    tensors["encoder.final_layer_norm.weight"] = tensors["encoder.final_layer_norm.weight"] + 1
    write_safetensors(tmp_path / "other.safetensors", tensors)
    tokenizer = ["--model.tokenizer", made.tiny.folder / "tokenizer"]
    other = ["--model.text_encoder", tmp_path / "other.safetensors", *tokenizer]
    code, _, err = door(train.main, *given, *other, "--out", tmp_path / "no")
    assert code == 2 and "with another text encoder or negative prompt than this recipe has" in err


def test_two_experts_are_refused_before_anything_is_encoded(tmp_path: Path, door: Door) -> None:
    made = House("t2v", tmp_path)
    shutil.copytree(made.tiny.folder, tmp_path / "a14b")
    (tmp_path / "a14b" / "transformer_2").mkdir()
    given = ["wan_t2v_1_3b", *made.model, *made.data, "--model.path", tmp_path / "a14b"]
    code, _, err = door(prepare.main, *given)
    assert code == 2 and "two experts are not supported yet" in err and not (tmp_path / "cache").exists()


def test_parts_beside_a_single_file_are_found(tmp_path: Path, door: Door) -> None:
    made = House("t2v", tmp_path)
    beside = tmp_path / "beside"
    shutil.copytree(made.tiny.folder, beside)
    shutil.copy(made.tiny.files["transformer"], beside / "wan.safetensors")
    given = ["wan_t2v_1_3b", *made.data, "--model.path", beside / "wan.safetensors"]
    assert door(prepare.main, *given)[0] == 0
