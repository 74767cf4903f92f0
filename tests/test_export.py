"""The export door on tiny real models and files: what it writes is read back by our loaders and by diffusers'."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from door_parts import Door, refused, write_teacher
from export_parts import MEASURED, WAN, about, base_of, done, measured, new_lora
from tiny_wan import KINDS, tiny_wan

from w2svd_core import export, lora_algebra
from w2svd_core.assembly import BUNDLED_TEACHER
from w2svd_core.backbones import wan_keys
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.lora_files import base_hash, read_lora, write_lora

# ---- convert


def test_the_base_of_a_comparison(tmp_path: Path, door: Door) -> None:
    bundled = WAN.load(BUNDLED_TEACHER, torch.float32)
    ours = new_lora(tmp_path / "ours.safetensors", bundled)
    assert measured(done(door(export.main, "convert", ours, "--out", tmp_path / "1.safetensors"))) > (0.0, 0.0)
    theirs = new_lora(tmp_path / "theirs.safetensors", bundled, known=False)
    shown = done(door(export.main, "convert", theirs, "--to", "diffusers", "--out", tmp_path / "2.safetensors"))
    assert "largest difference of the layers' updates: 0" in shown and "no base is named" in shown
    other = new_lora(tmp_path / "other.safetensors", base_of("t2v"))
    shown = done(door(export.main, "convert", other, "--rank", 1, "--out", tmp_path / "3.safetensors"))
    assert re.search(r"layers' updates: \d\S* \(of", shown) and MEASURED.search(shown) is None
    write_teacher(tmp_path / "teacher.safetensors", 0)
    base = ["--model", tmp_path / "teacher.safetensors"]
    model = WAN.load(base[1], torch.float32)  # type: ignore[arg-type]
    model.get_parameter("proj_out.bias").data += 1
    moved = new_lora(tmp_path / "moved.safetensors", model)
    shown = done(door(export.main, "convert", moved, "--out", tmp_path / "4.safetensors", *base))
    assert "moved.safetensors was trained on another base than" in shown and measured(shown)[0] == 0


def test_a_lora_in_16_bits_stays_as_it_is(tmp_path: Path, door: Door) -> None:
    model = base_of("t2v")
    tensors = read_safetensors(new_lora(tmp_path / "x.safetensors", model, known=False))[0]
    write_safetensors(tmp_path / "half.safetensors", {name: tensor.bfloat16() for name, tensor in tensors.items()})
    out = tmp_path / "out.safetensors"
    base = ["--model", tiny_wan("t2v").folder]
    done(door(export.main, "convert", tmp_path / "half.safetensors", "--to", "diffusers", "--out", out, *base))
    assert {tensor.dtype for tensor in read_safetensors(out)[0].values()} == {torch.bfloat16}


# ---- merge


@pytest.mark.parametrize("form", ["merged.safetensors", "merged"])
def test_a_merge_in_16_bits(form: str, tmp_path: Path, door: Door) -> None:
    model = base_of("t2v")
    lora, out = new_lora(tmp_path / "one.safetensors", model), tmp_path / form
    base = ["--model", tiny_wan("t2v").folder, "--precision", "bf16"]
    shown = done(door(export.main, "merge", lora, *base, "--out", out))
    assert 1e-5 < measured(shown)[0] < 0.05 * measured(shown)[1]
    lora_algebra.merge_files(model, [str(lora)], wan_keys)
    written = WAN.load(out, torch.float32).get_parameter("blocks.0.attn1.to_q.weight")
    assert torch.equal(written, model.get_parameter("blocks.0.attn1.to_q.weight").bfloat16().float())


def test_into_the_bundled_teacher(tmp_path: Path, door: Door) -> None:
    lora = new_lora(tmp_path / "x.safetensors", WAN.load(BUNDLED_TEACHER, torch.float32))
    out = tmp_path / "merged.safetensors"
    assert measured(done(door(export.main, "merge", lora, "--model", "bundled", "--out", out)))[0] < 1e-4
    assert read_safetensors(out)[0]["text_embedding.0.weight"].shape[1] == 4096


def test_a_student_of_a_fine_tune(tmp_path: Path, door: Door) -> None:
    """Its base is the model with the fine-tune in it, in the precision that it was trained in."""
    tiny = tiny_wan("t2v")
    style = new_lora(tmp_path / "style.safetensors", base_of("t2v"), known=False, student_rank=3)
    tuned = base_of("t2v", torch.bfloat16)
    lora_algebra.merge_files(tuned, [f"{style}@0.5"], wan_keys)
    student = new_lora(tmp_path / "student.safetensors", base_of("t2v"), known=False)
    pairs, _ = read_lora(student, wan_keys)
    write_lora(student, pairs, about(tuned, "bf16"), key_map=wan_keys)
    base = ["--model", tiny.folder, "--out", tmp_path / "out"]
    assert measured(done(door(export.main, "merge", f"{style}@0.5", student, *base)))[0] < 1e-5
    base[-1] = tmp_path / "never"
    assert "was trained on another base than" in refused(door(export.main, "merge", student, *base))
    assert not base[-1].exists()  # type: ignore[union-attr]
    assert "note: " in done(door(export.main, "merge", student, *base, "--any-base"))


# ---- extract


def test_a_run_with_a_full_copy(tmp_path: Path, door: Door) -> None:
    from w2svd_core import train
    from w2svd_core.data.portraits import render_folder

    teacher = write_teacher(tmp_path / "teacher.safetensors", 0)
    render_folder(tmp_path / "clips", 4, 0, 5, 32, 32, 8.0)
    settings = {
        "data.frames": 5, "data.height": 32, "data.width": 32, "data.fps": 8, "model.path": teacher,
        "data.folder": tmp_path / "clips", "data.cache": tmp_path / "cache", "train.steps": 2, "train.batch": 2,
        "method": "flow_matching", "student.lr": 0.01, "evaluate.clips": 0, "train.tracker": "none",
        "train.lr_decay": "constant", "student.ema": 0,
    }  # fmt: skip
    flat = [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
    run, adapter = tmp_path / "full", tmp_path / "adapter"
    assert train.main([*flat, "--student.kind", "full", "--out", str(run)]) == 0
    out = tmp_path / "out.safetensors"
    shown = done(door(export.main, "extract", run, "--rank", 4, "--out", out))
    measured(shown)
    base = WAN.load(teacher, torch.float32)
    pairs, metadata = read_lora(out, wan_keys)
    assert metadata and metadata.base_hash == base_hash(base) and metadata.default.sampler == "euler"
    assert {pair.rank for pair in pairs.values()} == {4}
    native = run / "student" / "student_model_comfyui.safetensors"
    again = ["--rank", 4, "--out", tmp_path / "again.safetensors", "--model"]
    done(door(export.main, "extract", native, *again, teacher))
    same = read_lora(tmp_path / "again.safetensors", wan_keys)
    assert same[1] == metadata and all(torch.equal(same[0][name].up, pair.up) for name, pair in pairs.items())
    other = write_teacher(tmp_path / "other.safetensors", 1)
    again[3] = tmp_path / "never.safetensors"
    assert "was trained on another base" in refused(door(export.main, "extract", run / "student", *again, other))
    assert "holds no student yet" in refused(_without_student(run, door, again[:4]))
    assert train.main([*flat, "--student.kind", "lora", "--student.rank", "2", "--out", str(adapter)]) == 0
    assert "is an adapter, not a full copy" in refused(door(export.main, "extract", adapter, *again[:4]))


def test_a_widened_student_has_no_base(tmp_path: Path, door: Door) -> None:
    run = tmp_path / "run"
    (run / "student").mkdir(parents=True)
    (run / "student" / "student_model_comfyui.safetensors").write_bytes(b"")
    recipe = "name: x\nmethod: flow_matching\nmodel: {init: first_frame, first_frame: true}\nstudent: {kind: full}\n"
    (run / "recipe.yaml").write_text(recipe)
    out = ["--rank", 4, "--out", tmp_path / "never.safetensors"]
    for more in ([], ["--model", "bundled", "--any-base"]):
        assert "more input channels than its base" in refused(door(export.main, "extract", run, *out, *more))


def _without_student(run: Path, door: Door, more: list[Any]) -> tuple[int, str, str]:
    empty = run.with_name("empty")
    empty.mkdir()
    (empty / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    return door(export.main, "extract", empty, *more)


# ---- what is refused


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRAs and models that do not serve."""
    folder = tmp_path_factory.mktemp("exports")
    t2v = base_of("t2v")
    new_lora(folder / "t2v.safetensors", t2v, known=False)
    new_lora(folder / "i2v.safetensors", base_of("i2v"), known=False)
    stem = "transformer.double_blocks.0.img"
    other = {f"{stem}.lora_A.weight": torch.ones(2, 24), f"{stem}.lora_B.weight": torch.ones(24, 2)}
    write_safetensors(folder / "hunyuan.safetensors", other)
    with (folder / "pickled.safetensors").open("wb") as stream:
        pickle.dump({"a": 1}, stream)
    (folder / "cut.safetensors").write_bytes((folder / "t2v.safetensors").read_bytes()[:-40])
    write_teacher(folder / "small.safetensors", 0)
    (folder / "file").write_text("")
    return folder


T2V, I2V = "{t2v}", "{i2v}"
FAULTS: list[tuple[list[str], str]] = [
    ([], "convert|merge|extract"),
    (["turn"], "invalid choice"),
    (["convert", "t2v.safetensors"], "--out"),
    (["convert", "t2v.safetensors", "--out", "x"], "must end in .safetensors"),
    (["convert", "t2v.safetensors", "--out", "t2v.safetensors"], "is there already"),
    (["convert", "t2v.safetensors", "--rank", "0", "--out", "x.safetensors"], "from 1 to 8192"),
    (["convert", "t2v.safetensors", "--to", "kohya", "--out", "x.safetensors"], "kohya"),
    (["convert", "t2v.safetensors", "--family", "sora", "--out", "x.safetensors"], "sora"),
    (["convert", "none.safetensors", "--out", "x.safetensors"], "none.safetensors is not there"),
    (["convert", "pickled.safetensors", "--out", "x.safetensors"], "is a pickled file"),
    (["convert", "cut.safetensors", "--out", "x.safetensors"], "is not a whole safetensors file"),
    (["convert", "hunyuan.safetensors", "--out", "x.safetensors"], "is it for another"),
    (["convert", "small.safetensors", "--out", "x.safetensors"], "holds no LoRA"),
    (["convert", "i2v.safetensors", "--model", T2V, "--out", "x.safetensors"], "which this model lacks"),
    (["convert", "t2v.safetensors", "--model", "small.safetensors", "--out", "x.safetensors"], "wide, this model"),
    (["convert", "t2v.safetensors", "--model", "none", "--out", "x.safetensors"], "is not there"),
    (["convert", "t2v.safetensors", "--out", "file/x.safetensors"], "file"),
    (["merge", "t2v.safetensors", "--out", "x"], "--model is missing"),
    (["merge", "--model", T2V, "--out", "x"], "LORA"),
    (["merge", "t2v.safetensors", "--model", T2V, "--out", "x.ckpt"], "must end in .safetensors"),
    (["merge", "t2v.safetensors", "--model", T2V, "--out", "."], "--out"),
    (["merge", "t2v.safetensors@nan", "--model", T2V, "--out", "x"], "no finite number"),
    (["merge", "t2v.safetensors", "i2v.safetensors", "--model", T2V, "--out", "x"], "i2v.safetensors has the layer"),
    (["merge", "hunyuan.safetensors", "--model", T2V, "--out", "x"], "is it for another"),
    (["merge", "pickled.safetensors", "--model", T2V, "--out", "x"], "is a pickled file"),
    (["merge", "t2v.safetensors", "--model", "pickled.safetensors", "--out", "x"], "is a pickled file"),
    (["merge", "t2v.safetensors", "--model", T2V, "--out", "file/x"], "file"),
    (["merge", "t2v.safetensors", "--model", T2V, "--out", "file/x.safetensors"], "file"),
    (
        ["merge", "t2v.safetensors@1e9", "--model", T2V, "--precision", "fp16", "--out", "x.safetensors"],
        "fit into fp16",
    ),
    (["extract", T2V, "--out", "x.safetensors"], "--rank"),
    (["extract", T2V, "--rank", "0", "--out", "x.safetensors", "--model", T2V], "from 1 to 8192"),
    (["extract", T2V, "--rank", "2", "--out", "x.safetensors"], "--model is missing"),
    (["extract", T2V, "--rank", "2", "--out", "x.safetensors", "--model", T2V], "no LoRA to extract"),
    (["extract", I2V, "--rank", "2", "--out", "x.safetensors", "--model", T2V], "of the two models"),
    (["extract", "t2v.safetensors", "--rank", "2", "--out", "x.safetensors", "--model", T2V], "is a LoRA, not a full"),
    (["extract", "none", "--rank", "2", "--out", "x.safetensors", "--model", T2V], "is not there"),
    (["extract", "pickled.safetensors", "--rank", "2", "--out", "x.safetensors", "--model", T2V], "is a pickled"),
    (["extract", "file", "--rank", "2", "--out", "x.safetensors", "--model", T2V], "not a whole safetensors file"),
]


@pytest.mark.parametrize(("arguments", "sentence"), FAULTS, ids=[f"{i}-{s[:16]}" for i, (_, s) in enumerate(FAULTS)])
def test_faults_end_with_one_sentence(
    arguments: list[str], sentence: str, place: Path, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    given = [one.format(**{kind: tiny_wan(kind).folder for kind in KINDS}) for one in arguments]
    before = sorted(path.name for path in place.rglob("*"))
    assert sentence in refused(door(export.main, *given))
    assert sorted(path.name for path in place.rglob("*")) == before


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    asks: Callable[[list[str]], int] = export.main
    for command in ([], ["convert"], ["merge"], ["extract"]):
        with pytest.raises(SystemExit) as ended:
            asks([*command, "--help"])
        assert ended.value.code == 0 and "--help" in capsys.readouterr().out
