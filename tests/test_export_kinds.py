"""The export door on every kind of model: what it writes is read back by our loaders and by diffusers'."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from door_parts import Door
from export_parts import about, done, measured, model_of, new_lora, output
from kind import Kind
from kinds import KINDS
from torch import nn

from w2svd_core import export, lora_algebra
from w2svd_core.files import read_safetensors
from w2svd_core.lora_files import LoraMetadata, base_hash, read_lora
from w2svd_core.student_files import ABOUT

ALWAYS = ("wan-t2v", "wan-i2v", "hunyuan_video-replace", "cosmos-i2v")
kinds = pytest.mark.parametrize(
    "kind", [kind if str(kind) in ALWAYS else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS], ids=str
)
WIDENED = "condition_embedder.text_embedder.linear_1.weight"  # Wan's native files have a text projection of full width


def file_of(kind: Kind) -> Path:
    """The tiny model as a native file, where such a file says what it is, else its folder."""
    assert kind.tiny is not None
    return kind.tiny().files.get("transformer", kind.tiny().folder)


@kinds
def test_there_and_back_is_bit_exact(kind: Kind, tmp_path: Path, door: Door) -> None:
    assert kind.tiny is not None
    model = model_of(kind)
    source = new_lora(tmp_path / "native.safetensors", model, family=kind.backbone)
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    base = ["--model", kind.tiny().folder, "--family", kind.family]
    shown = done(door(export.main, "convert", source, "--to", "diffusers", "--out", there, *base))
    assert measured(shown)[0] == 0 and measured(shown)[1] > 0.1 and f"wrote {there}" in shown
    done(door(export.main, "convert", there, "--out", back, *base))
    before, after = read_safetensors(source), read_safetensors(back)
    assert before[0].keys() == after[0].keys() and before[1] == after[1]
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert all(name.startswith("transformer.") for name in read_safetensors(there)[0])
    assert read_lora(there, kind.backbone.keys)[1] == about(model)


@kinds
def test_another_rank(kind: Kind, tmp_path: Path, door: Door) -> None:
    model = model_of(kind)
    source = new_lora(tmp_path / "native.safetensors", model, family=kind.backbone)
    base = ["--model", file_of(kind), "--family", kind.family]  # the same weights as one native file
    wide, narrow = tmp_path / "wide.safetensors", tmp_path / "narrow.safetensors"
    shown = done(door(export.main, "convert", source, "--rank", 6, "--out", wide, *base), noted=True)
    assert "rank 4 became 6; of the updates 0 % is lost" in shown and measured(shown)[0] < 1e-5
    shown = done(door(export.main, "convert", source, "--rank", 2, "--out", narrow, *base), noted=True)
    pairs, metadata = read_lora(narrow, kind.backbone.keys)
    fewer, error = lora_algebra.at_rank(read_lora(source, kind.backbone.keys)[0], 2)
    assert f"of the updates {100 * error:.2g} % is lost" in shown and metadata == about(model)
    assert all(torch.equal(pair.up, fewer[name].up) for name, pair in pairs.items())
    with lora_algebra.acting(model, [lora_algebra.Lora(read_lora(source, kind.backbone.keys)[0])]):
        before = output(model, kind.backbone)
    with lora_algebra.acting(model, [lora_algebra.Lora(fewer)]):
        largest = float((output(model, kind.backbone) - before).abs().max())
    assert measured(shown)[0] == pytest.approx(largest, rel=0.06) and largest > 1e-3  # two digits are shown


@kinds
@pytest.mark.parametrize("form", ["merged.safetensors", "wan2.1-merged"])
def test_a_merge_acts_like_base_and_loras(kind: Kind, form: str, tmp_path: Path, door: Door) -> None:
    assert kind.tiny is not None
    model = model_of(kind)
    one = new_lora(tmp_path / "one.safetensors", model, known=False, family=kind.backbone)
    two = new_lora(tmp_path / "two.safetensors", model, "diffusers", family=kind.backbone, student_rank=3)
    out = tmp_path / form
    base = ["--model", kind.tiny().folder, "--family", kind.family]
    shown = done(door(export.main, "merge", one, f"{two}@-0.5", *base, "--out", out))
    assert measured(shown)[0] < 1e-5 < 1e-2 < measured(shown)[1]
    read = [lora_algebra.open_lora(text, kind.backbone.keys)[0] for text in (str(one), f"{two}@-0.5")]
    with lora_algebra.acting(model, read):
        wanted = output(model, kind.backbone)
    assert (output(kind.backbone.load(out, torch.float32).eval(), kind.backbone) - wanted).abs().max() < 1e-5
    if out.is_dir():
        theirs = type(model).from_pretrained(out).eval()  # type: ignore[attr-defined]
        assert (output(theirs, kind.backbone) - wanted).abs().max() < 1e-5
        assert json.loads((out / ABOUT).read_text())["base_hash"] == base_hash(model)
    else:
        tensors, strings = read_safetensors(out)
        assert tensors.keys() == kind.backbone.native_state(model).keys() and LoraMetadata.from_strings(
            strings
        ) == about(model)


def full_copy(kind: Kind, size: float = 0.02) -> nn.Module:
    student = copy.deepcopy(model_of(kind))
    rng = torch.Generator().manual_seed(3)
    for layer in student.modules():
        if isinstance(layer, nn.Linear):  # of tables of words a LoRA knows nothing
            layer.weight.data += size * torch.randn(layer.weight.shape, generator=rng)
    return student


@kinds
@pytest.mark.parametrize("format", ["native", "diffusers"])
def test_a_full_rank_is_the_full_copy(kind: Kind, format: str, tmp_path: Path, door: Door) -> None:
    assert kind.lora_pipeline is not None
    student, base = full_copy(kind), model_of(kind)
    if format == "native" and WIDENED in base.state_dict():  # wider there than the model's, so that no LoRA fits both
        student.get_parameter(WIDENED).data = base.get_parameter(WIDENED).data
    kind.backbone.save_folder(student, tmp_path / "student", torch.float32)
    out = tmp_path / "out.safetensors"
    given = ["--model", file_of(kind), "--rank", 2048, "--to", format, "--out", out]  # its family is the folder's
    shown = done(door(export.main, "extract", tmp_path / "student", *given), noted=True)
    assert measured(shown)[0] < 1e-4 and " and 0 % of the whole change" in shown
    pairs, metadata = read_lora(out, kind.backbone.keys)
    assert metadata is None and len(pairs) > 20
    after = lora_algebra.merged(base.state_dict(), pairs)
    for name, weight in student.state_dict().items():
        assert (after[name] - weight).abs().max() < 1e-6, name
    if format == "native" and not kind.native_loras:
        return
    kind.lora_pipeline(base).load_lora_weights(str(tmp_path), weight_name=out.name)
    assert (output(base, kind.backbone) - output(student, kind.backbone)).abs().max() < 1e-4
