"""LoRA files: both formats exact, read by diffusers as they are; metadata, hashes, errors in one sentence."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from w2svd_core import lora_files
from w2svd_core.backbones import wan_keys
from w2svd_core.errors import UserError
from w2svd_core.lora_files import LoraMetadata, LoraPair, Schedule

TARGETS = ["attn1.to_q", "attn2.to_k", "to_out.0", "ffn.net.0.proj", "ffn.net.2", "time_proj", "proj_out"]
FORMATS = ["native", "diffusers"]


def tiny() -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
    ).eval()


def adapted(adapter: str = "generator", seed: int = 1, **changes: Any) -> Any:
    """A tiny Wan with an adapter whose B is not zero; alpha 6 at rank 4, other numbers in some layers."""
    from peft import LoraConfig

    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": TARGETS,
        "rank_pattern": {"attn1.to_q": 2},
        "alpha_pattern": {"ffn.net.2": 3},
    }
    model = tiny()
    model.add_adapter(LoraConfig(**{**settings, **changes}), adapter_name=adapter)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    return model


def output(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    video = torch.randn(2, 16, 2, 4, 4, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator)
    with torch.no_grad():
        out: Tensor = model(video, torch.tensor([900.0, 300.0]), text, return_dict=False)[0]
    return out


def metadata(**changes: Any) -> LoraMetadata:
    values: dict[str, Any] = {
        "method": "w2s",
        "alpha_weak": 0.25,
        "schedules": (
            Schedule((1.0, 0.9375, 5 / 6, 0.625, 0.0), "renoise", 5.0, 1.0, "trained"),
            Schedule((1.0, 0.8, 0.0), "euler", None, 1.0, "tried"),
        ),
        "base_class": "WanTransformer3DModel",
        "base_hash": "0" * 64,
        "teacher_guidance": 3.0,
        "version": "0.1.0",
        "recipe": "portraits",
    }
    return LoraMetadata(**{**values, **changes})


def assert_same(left: dict[str, LoraPair], right: dict[str, LoraPair]) -> None:
    assert set(left) == set(right)
    for name, pair in left.items():
        assert torch.equal(pair.down, right[name].down), name
        assert torch.allclose(pair.delta(), right[name].delta(), rtol=0, atol=1e-7), name


def write(path: Path, model: nn.Module, format: str, about: LoraMetadata | None = None) -> dict[str, LoraPair]:
    pairs = lora_files.pairs_from_peft(model, "generator")
    lora_files.write_lora(path, pairs, about, format=format, key_map=wan_keys)  # type: ignore[arg-type]
    return pairs


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_is_exact(tmp_path: Path, format: str) -> None:
    model, path = adapted(), tmp_path / "student.safetensors"
    pairs = write(path, model, format, metadata())
    assert {pair.rank for pair in pairs.values()} == {2, 4}
    assert {pair.alpha for pair in pairs.values()} == {3.0, 6.0}

    read, about = lora_files.read_lora(path, wan_keys)
    assert about == metadata()
    assert_same(pairs, read)
    for name, pair in read.items():
        if name.startswith("blocks.") or format == "diffusers":  # elsewhere native files carry the scale in `up`
            assert pair.alpha == pairs[name].alpha
            assert torch.equal(pair.up, pairs[name].up)

    other = adapted(seed=2)
    matched, unmatched = lora_files.load_into_peft(other, "generator", read)
    assert set(matched) == set(pairs)
    assert unmatched == []
    assert (output(other) - output(model)).abs().max() < 1e-6


@pytest.mark.parametrize("format", FORMATS)
def test_diffusers_pipeline_loads_our_files(tmp_path: Path, format: str) -> None:
    from diffusers import WanPipeline

    model, base = adapted(), tiny()
    write(tmp_path / "student.safetensors", model, format, metadata())
    plain = output(base)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=base)
    pipeline.load_lora_weights(str(tmp_path), weight_name="student.safetensors")
    assert (output(base) - output(model)).abs().max() < 1e-6
    assert (output(base) - plain).abs().max() > 1e-2


def test_native_keys(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    write(path, adapted(), "native", metadata())
    tensors = load_file(path)
    assert all(name.startswith("diffusion_model.") for name in tensors)
    stem = "diffusion_model.blocks.1.ffn.2"
    assert tensors[f"{stem}.alpha"].item() == 3.0
    assert tensors[f"{stem}.lora_down.weight"].shape == (4, 32)
    assert tensors[f"{stem}.lora_up.weight"].shape == (24, 4)
    assert "diffusion_model.head.head.alpha" not in tensors
    with safe_open(str(path), "pt") as file:
        strings = file.metadata()
    assert strings["w2svd.sampler"] == "renoise"
    assert strings["w2svd.sigmas"].startswith("1, 0.9375, 0.8333")
    assert "lora_adapter_metadata" not in strings  # diffusers would apply alpha twice


def native_layer(alpha: float | None, sides: tuple[str, str], prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    stem = f"{prefix}blocks.0.self_attn.q"
    tensors = {f"{stem}.{sides[0]}.weight": torch.ones(2, 24), f"{stem}.{sides[1]}.weight": torch.ones(24, 2)}
    return tensors if alpha is None else {**tensors, f"{stem}.alpha": torch.tensor(alpha)}


@pytest.mark.parametrize(
    ("tensors", "alpha"),
    [
        (native_layer(1.0, ("lora_down", "lora_up")), 1.0),
        (native_layer(None, ("lora_down", "lora_up")), 2.0),
        (native_layer(0.5, ("lora_A", "lora_B")), 0.5),
        (native_layer(None, ("lora_A", "lora_B"), "transformer."), 2.0),
        (native_layer(None, ("lora_A.default", "lora_B.default"), ""), 2.0),
    ],
)
def test_other_spellings(tmp_path: Path, tensors: dict[str, Tensor], alpha: float) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    pairs, about = lora_files.read_lora(tmp_path / "x.safetensors", wan_keys)
    assert about is None
    assert list(pairs) == ["blocks.0.attn1.to_q"]
    assert pairs["blocks.0.attn1.to_q"].alpha == alpha


def test_reads_what_diffusers_saves(tmp_path: Path) -> None:
    model = adapted()
    model.save_lora_adapter(tmp_path, adapter_name="generator")
    pairs, _ = lora_files.read_lora(tmp_path / "pytorch_lora_weights.safetensors", wan_keys)
    assert_same(lora_files.pairs_from_peft(model, "generator"), pairs)


@pytest.mark.parametrize("rslora", [False, True])
def test_reads_what_peft_saves(tmp_path: Path, rslora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q"], init_lora_weights=False, use_rslora=rslora)
    model = get_peft_model(tiny(), config)
    model.save_pretrained(tmp_path)
    pairs, _ = lora_files.read_lora(tmp_path / "adapter_model.safetensors", wan_keys)
    assert_same(lora_files.pairs_from_peft(model, "default"), pairs)
    layer = model.base_model.model.blocks[0].attn1.to_q
    assert torch.allclose(pairs["blocks.0.attn1.to_q"].delta().float(), layer.get_delta_weight("default"), atol=1e-7)


def test_load_folds_alpha_and_smaller_rank(tmp_path: Path) -> None:
    from peft import LoraConfig

    model = adapted()
    pairs = lora_files.pairs_from_peft(model, "generator")
    other = adapted("fake", seed=3, r=8, lora_alpha=5, rank_pattern={}, alpha_pattern={})
    assert set(lora_files.load_into_peft(other, "fake", pairs)[0]) == set(pairs)
    assert (output(other) - output(model)).abs().max() < 1e-6

    exact = tiny()
    exact.add_adapter(LoraConfig(**lora_files.peft_settings(pairs)), adapter_name="fake")
    lora_files.load_into_peft(exact, "fake", pairs)
    assert torch.equal(output(exact), output(model))
    assert_same(pairs, lora_files.pairs_from_peft(exact, "fake"))


def test_load_reports_what_does_not_match() -> None:
    model = adapted()
    pairs = lora_files.pairs_from_peft(model, "generator")
    part = {"proj_out": pairs["proj_out"], "elsewhere": pairs["proj_out"]}
    assert lora_files.load_into_peft(model, "generator", part) == (["proj_out"], ["elsewhere"])
    assert model.blocks[0].attn1.to_q.lora_B["generator"].weight.abs().max() == 0

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wide = {
        "proj_out": pairs["proj_out"],
        "blocks.0.attn1.to_q": LoraPair(torch.ones(2, 99), torch.ones(24, 2), 2.0),
    }
    deep = {"blocks.0.attn1.to_q": LoraPair(torch.ones(3, 24), torch.ones(24, 3), 2.0)}
    for bad, sentence in [
        ({"elsewhere": pairs["proj_out"]}, "none of"),
        (wide, "99 -> 24"),
        (deep, "rank 3"),
    ]:
        with pytest.raises(UserError, match=sentence):
            lora_files.load_into_peft(model, "generator", bad)
    with pytest.raises(UserError, match="no adapter named fake"):
        lora_files.load_into_peft(model, "fake", pairs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_base_hash_ignores_adapters_and_sees_a_bit() -> None:
    base = tiny()
    plain = lora_files.base_hash(base)
    model = adapted()
    assert lora_files.base_hash(model) == plain == lora_files.base_hash(dict(reversed(base.state_dict().items())))
    weight = model.blocks[0].attn1.to_q.base_layer.weight
    weight.data[0, 0] = torch.nextafter(weight.data[0, 0], torch.tensor(9.0))
    assert lora_files.base_hash(model) != plain
    assert lora_files.base_hash(base.to(torch.bfloat16)) != plain


def test_check_base(tmp_path: Path) -> None:
    assert lora_files.check_base(metadata(), "0" * 64, "x.safetensors")
    assert not lora_files.check_base(None, "0" * 64, "x.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors was trained for another base"):
        lora_files.check_base(metadata(), "1" * 64, "x.safetensors")
    with pytest.raises(UserError, match=r"load the model that it was trained on \(its base is another\)$"):
        lora_files.check_base(metadata(note="its base is another"), "1" * 64, "x.safetensors")


def test_a_base_in_another_precision_is_named() -> None:
    about = metadata(base_precision="bf16")
    assert LoraMetadata.from_strings(about.to_strings()) == about
    assert lora_files.check_base(about, "0" * 64, "x.safetensors", "bf16")
    with pytest.raises(UserError, match=r"on a base in bf16 and this one is in fp32.* with --model\.precision bf16"):
        lora_files.check_base(about, "1" * 64, "x.safetensors", "fp32")
    for found, precision in [(about, "bf16"), (about, ""), (metadata(), "fp32")]:  # the last: a file from before
        with pytest.raises(UserError, match=r"x\.safetensors was trained for another base"):
            lora_files.check_base(found, "1" * 64, "x.safetensors", precision)


def test_a_file_from_before_has_no_precision() -> None:
    strings = metadata().to_strings()
    values = json.loads(strings["w2svd"])
    del values["base_precision"]
    assert LoraMetadata.from_strings({"w2svd": json.dumps(values)}) == metadata()
    assert "w2svd.base_precision" not in strings


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schedule((1.0, 0.5)),
        lambda: Schedule((0.0,)),
        lambda: Schedule((0.5, 1.0, 0.0)),
        lambda: Schedule((1.0, float("nan"), 0.0)),
        lambda: Schedule((1000.0, 500.0, 0.0)),
        lambda: Schedule((1.0, 0.0), "dpm"),
        lambda: Schedule((1.0, 0.0), shift=0.0),
        lambda: Schedule((1.0, 0.0), guidance_scale=-1.0),
        lambda: metadata(schedules=()),
    ],
)
def test_bad_schedules(make: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1}', "damaged"),
        ('{"format": 9}', "newer version"),
        (json.dumps({"format": 1, "method": "w2s", "schedules": [{"sigmas": [1, 0.5]}]}), "must fall"),
    ],
)
def test_bad_metadata(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"x\.safetensors.*{sentence}"):
        LoraMetadata.from_strings({"w2svd": text}, "x.safetensors")


def test_later_fields_are_ignored() -> None:
    strings = metadata().to_strings()
    values = json.loads(strings["w2svd"]) | {"later": 1}
    assert LoraMetadata.from_strings({"w2svd": json.dumps(values)}) == metadata()


GOOD = native_layer(None, ("lora_A", "lora_B"))
Q = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("tensors", "strings", "sentence"),
    [
        ({"blocks.0.attn1.to_q.weight": torch.ones(2, 2)}, {}, "holds no LoRA"),
        (
            {**GOOD, **{f"lora_unet_x_{i}.alpha": torch.ones(()) for i in range(5)}},
            {},
            "5 keys .*x_0.*x_1.*x_2",
        ),
        ({**GOOD, f"{Q}.diff_m": torch.ones(2)}, {}, "diff_m"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 24)}, {}, "lacks its up matrix"),
        ({**GOOD, f"{Q}.lora_B.weight": torch.ones(24, 3)}, {}, "shapes"),
        ({**GOOD, f"{Q}.lora_B.weight": torch.full((24, 2), torch.nan)}, {}, "not finite"),
        ({**GOOD, f"{Q}.lora_up.weight": torch.ones(24, 2)}, {}, "twice"),
        (GOOD, {"lora_adapter_metadata": "{"}, "rank and alpha"),
        (GOOD, {"lora_adapter_metadata": '{"transformer.r": 2}'}, "rank and alpha"),
        (
            GOOD,
            {"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 2, "use_dora": true}'},
            "DoRA",
        ),
    ],
)
def test_bad_files(tmp_path: Path, tensors: dict[str, Tensor], strings: dict[str, str], sentence: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, strings)
    with pytest.raises(UserError, match=rf"x\.safetensors.*{sentence}"):
        lora_files.read_lora(path, wan_keys)


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-40])
    (tmp_path / "text.safetensors").write_text("hello, this is a text")
    with (tmp_path / "old.pt").open("wb") as stream:
        pickle.dump({"a": 1}, stream)
    torch.save(GOOD, tmp_path / "old.ckpt")
    for name in ("cut.safetensors", "text.safetensors", "old.pt", "old.ckpt", "missing.safetensors"):
        with pytest.raises(UserError, match=name):
            lora_files.read_lora(tmp_path / name, wan_keys)


def test_bad_writes(tmp_path: Path) -> None:
    pair = LoraPair(torch.ones(2, 24), torch.ones(24, 2), 2.0)
    path = tmp_path / "x.safetensors"
    for pairs, format, sentence in [
        ({}, "native", "empty"),
        ({"blocks.0.attn1.to_q": pair}, "kohya", "kohya"),
        ({"double_blocks.0": pair}, "native", "double_blocks"),
    ]:
        with pytest.raises(UserError, match=sentence):
            lora_files.write_lora(path, pairs, None, format=format, key_map=wan_keys)  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"lora_bias": True}])
def test_only_plain_lora(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="plain LoRA"):
        lora_files.pairs_from_peft(adapted(**changes), "generator")
