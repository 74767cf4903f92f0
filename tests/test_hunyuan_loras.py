"""LoRA files of HunyuanVideo: one layer of a native file is several of diffusers, and comes apart again as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hunyuan_kinds import HUNYUAN, new_hunyuan
from safetensors.torch import load_file, save_file
from torch import Tensor

from w2svd_core import export
from w2svd_core.backbones import backbone, family_of_lora, hunyuan_keys
from w2svd_core.errors import UserError
from w2svd_core.exporting import Base, convert, extract
from w2svd_core.files import write_safetensors
from w2svd_core.lora_algebra import merge_files, merged, open_lora
from w2svd_core.lora_files import (
    LoraMetadata,
    LoraPair,
    Schedule,
    native_tensors,
    pairs_from_peft,
    read_changes,
    read_lora,
    write_lora,
)
from w2svd_core.roles import matching

FAMILY = backbone("hunyuan_video")
T2V = HUNYUAN[0]
QKV = "diffusion_model.double_blocks.0.img_attn_qkv"
LINEAR1 = "diffusion_model.single_blocks.0.linear1"


def new_pairs(model: torch.nn.Module, rank: int = 4, alpha: float = 4.0, seed: int = 5) -> dict[str, LoraPair]:
    """An update of every layer that takes an adapter."""
    rng, targets = torch.Generator().manual_seed(seed), matching(FAMILY.lora_targets)
    return {
        name: LoraPair(
            torch.randn(rank, layer.in_features, generator=rng),
            torch.randn(layer.out_features, rank, generator=rng),
            alpha,
        )
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and targets.fullmatch(name)
    }


def same_pairs(found: Mapping[str, LoraPair], wanted: Mapping[str, LoraPair]) -> None:
    assert found.keys() == wanted.keys()
    for name, pair in wanted.items():
        assert torch.equal(found[name].down, pair.down) and torch.equal(found[name].up, pair.up), name
        assert found[name].alpha == pair.alpha


def same_updates(found: Mapping[str, LoraPair], wanted: Mapping[str, LoraPair]) -> None:
    assert found.keys() == wanted.keys()
    for name, pair in wanted.items():
        torch.testing.assert_close(found[name].delta(), pair.delta(), atol=1e-5, rtol=1e-5)


def test_every_linear_layer_of_the_blocks_takes_an_adapter_and_no_other() -> None:
    names = set(new_pairs(new_hunyuan()))
    double = {f"attn.to_{n}" for n in ("q", "k", "v", "out.0", "add_out")} | {f"attn.add_{n}_proj" for n in "qkv"}
    double |= {f"{feed}.net.{n}" for feed in ("ff", "ff_context") for n in ("0.proj", "2")}
    single = {*(f"attn.to_{n}" for n in "qkv"), "proj_mlp", "proj_out"}
    wanted = {f"transformer_blocks.0.{n}" for n in double} | {f"single_transformer_blocks.0.{n}" for n in single}
    assert names == wanted
    adapted = T2V.with_roles().parameters("generator")
    assert {name.split(".lora_")[0] for name in adapted} == wanted


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (4, 6.0), (5, 2.0), (3, 1.0)])
def test_a_native_file_comes_back_bit_for_bit(rank: int, alpha: float, tmp_path: Path) -> None:
    pairs = new_pairs(new_hunyuan(), rank, alpha)
    path = tmp_path / "native.safetensors"
    write_lora(path, pairs, None, key_map=hunyuan_keys)
    tensors = load_file(path)
    assert tensors[f"{QKV}.lora_down.weight"].shape == (3 * rank, 20)
    assert tensors[f"{LINEAR1}.lora_down.weight"].shape == (4 * rank, 20)
    assert tensors[f"{LINEAR1}.lora_up.weight"].shape == (3 * 20 + 40, 4 * rank)
    assert tensors[f"{LINEAR1}.alpha"] == 4 * alpha and len(tensors) == 3 * len(
        set(map(hunyuan_keys.native_module, pairs))
    )
    same_pairs(read_lora(path, hunyuan_keys)[0], pairs)


@pytest.mark.parametrize("adapter", ["fake", "generator"])
def test_what_was_trained_comes_back(adapter: str, tmp_path: Path) -> None:
    """Fresh ones too, whose up is zero in every row."""
    for fresh in (False, True):
        pairs = pairs_from_peft(T2V.with_roles(fresh=fresh).base, adapter)
        write_lora(tmp_path / "trained.safetensors", pairs, None, key_map=hunyuan_keys)
        same_pairs(read_lora(tmp_path / "trained.safetensors", hunyuan_keys)[0], pairs)


def applied(native: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Native weights with a native LoRA in them, as ComfyUI adds it: alpha / rank up @ down."""
    found = dict(native)
    for key, down in tensors.items():
        if key.endswith(".lora_down.weight"):
            stem = key.removesuffix(".lora_down.weight")
            name = stem.removeprefix("diffusion_model.") + ".weight"
            scale = tensors[f"{stem}.alpha"] / len(down)
            found[name] = found[name] + scale * tensors[f"{stem}.lora_up.weight"] @ down
    return found


MIXED: dict[str, dict[str, Any]] = {
    "whole": {},
    "several ranks": {"to_q": (2, 2.0), "to_k": (7, 3.0), "proj_mlp": (1, 8.0)},
    "without k": {"to_k": None},
    "only v and the feed-forward": {"to_q": None, "to_k": None, "add_q_proj": None},
}


@pytest.mark.parametrize("change", MIXED)
def test_the_native_layer_does_what_the_layers_did(change: str) -> None:
    model = new_hunyuan()
    pairs = new_pairs(model)
    for end, sizes in MIXED[change].items():
        for name in [name for name in pairs if name.endswith(end)]:
            if sizes is None:
                del pairs[name]
            else:
                pairs[name] = new_pairs(model, *sizes)[name]
    native = applied(hunyuan_keys.to_native(model.state_dict()), native_tensors(pairs, hunyuan_keys))
    wanted = hunyuan_keys.to_native(merged(model.state_dict(), pairs))
    for name, weight in wanted.items():
        torch.testing.assert_close(native[name], weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", MIXED)
def test_layers_of_several_ranks_come_back(change: str, tmp_path: Path) -> None:
    model = new_hunyuan()
    pairs = {
        name: pair
        for name, pair in new_pairs(model).items()
        if not any(sizes is None and name.endswith(end) for end, sizes in MIXED[change].items())
    }
    for end, sizes in MIXED[change].items():
        pairs |= {n: new_pairs(model, *sizes)[n] for n in pairs if sizes is not None and n.endswith(end)}
    write_lora(tmp_path / "a.safetensors", pairs, None, key_map=hunyuan_keys)
    found, _ = read_lora(tmp_path / "a.safetensors", hunyuan_keys)
    same_updates(found, pairs)
    if change != "whole":
        assert {name: pair.rank for name, pair in found.items()} == {name: pair.rank for name, pair in pairs.items()}


def test_a_file_that_was_trained_on_the_native_layers_keeps_its_rank(tmp_path: Path) -> None:
    rng, path = torch.Generator().manual_seed(0), tmp_path / "others.safetensors"
    tensors = {
        f"{QKV}.lora_down.weight": torch.randn(8, 20, generator=rng),
        f"{QKV}.lora_up.weight": torch.randn(60, 8, generator=rng),
        f"{QKV}.alpha": torch.tensor(2.0),
        f"{LINEAR1}.lora_down.weight": torch.randn(8, 20, generator=rng),
        f"{LINEAR1}.lora_up.weight": torch.randn(100, 8, generator=rng),
        f"{LINEAR1}.alpha": torch.tensor(8.0),
    }
    save_file(tensors, path)
    pairs, _ = read_lora(path, hunyuan_keys)
    assert len(pairs) == 7 and {pair.rank for pair in pairs.values()} == {8}
    updates = torch.cat([pairs[f"transformer_blocks.0.attn.to_{n}"].delta().float() for n in "qkv"])
    wanted = tensors[f"{QKV}.lora_up.weight"] @ tensors[f"{QKV}.lora_down.weight"] * (2 / 8)
    torch.testing.assert_close(updates, wanted)
    assert pairs["single_transformer_blocks.0.proj_mlp"].up.shape == (40, 8)
    again = native_tensors(pairs, hunyuan_keys)
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_every_writer_s_names_are_read_alike(tmp_path: Path) -> None:
    pairs, path = new_pairs(new_hunyuan()), tmp_path / "named.safetensors"
    tensors = native_tensors(pairs, hunyuan_keys)

    def renamed(key: str, way: str) -> str:
        stem, _, rest = key.removeprefix("diffusion_model.").rpartition(".lora_" if ".lora_" in key else ".alpha")
        end = f".lora_{rest}" if ".lora_" in key else ".alpha"
        if way == "kohya":
            return f"lora_unet_{stem.replace('.', '_')}{end}"
        if way == "diffusion-pipe":
            return f"transformer.{stem}{end}".replace("lora_down", "lora_A").replace("lora_up", "lora_B")
        for theirs, own in [("_attn_", "_attn."), ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2")]:
            stem = stem.replace(theirs, own)
        return f"diffusion_model.{stem}{end}"

    for way in ("kohya", "diffusion-pipe", "ComfyUI"):
        save_file({renamed(key, way): tensor.contiguous() for key, tensor in tensors.items()}, path)
        same_pairs(read_lora(path, hunyuan_keys)[0], pairs)


def test_diffusers_reads_what_is_written_for_it(tmp_path: Path) -> None:
    model = new_hunyuan()
    pairs, path = new_pairs(model, alpha=2.0), tmp_path / "lora.safetensors"
    write_lora(path, pairs, None, format="diffusers", key_map=hunyuan_keys)
    x_t, condition, sigma = T2V.points(), T2V.condition(2), torch.tensor([0.9, 0.35])
    with torch.no_grad():
        plain = T2V.by_hand(model, x_t, sigma, condition)
        assert T2V.lora_pipeline is not None
        T2V.lora_pipeline(model).load_lora_weights(path)
        theirs = T2V.by_hand(model, x_t, sigma, condition)
        ours = new_hunyuan()
        merge_files(ours, [str(path)], hunyuan_keys)
        found = T2V.by_hand(ours, x_t, sigma, condition)
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-4)
    assert (found - plain).abs().max() > 0.1


def test_the_last_modulation_and_biases_of_others_are_turned_round(tmp_path: Path) -> None:
    rng, path, model = torch.Generator().manual_seed(0), tmp_path / "others.safetensors", new_hunyuan()
    last = "diffusion_model.final_layer.adaLN_modulation.1"
    tensors = {
        f"{last}.lora_down.weight": torch.randn(2, 20, generator=rng),
        f"{last}.lora_up.weight": torch.randn(40, 2, generator=rng),
        f"{last}.diff_b": torch.randn(40, generator=rng),
        "diffusion_model.double_blocks.0.txt_attn.qkv.diff_b": torch.randn(60, generator=rng),
        "diffusion_model.double_blocks.0.img_attn.norm.key_norm.diff": torch.randn(10, generator=rng),
    }
    save_file(tensors, path)
    changes = read_changes(path, hunyuan_keys)
    assert {name: len(change) for name, change in changes.items()} == {
        "norm_out.linear.bias": 40,
        **{f"transformer_blocks.0.attn.add_{n}_proj.bias": 20 for n in "qkv"},
        "transformer_blocks.0.attn.norm_k": 10,
    }
    native = hunyuan_keys.to_native(model.state_dict())
    merge_files(model, [str(path)], hunyuan_keys)
    found = hunyuan_keys.to_native(model.state_dict())
    update = tensors[f"{last}.lora_up.weight"] @ tensors[f"{last}.lora_down.weight"]
    for name, change in [
        ("final_layer.adaLN_modulation.1.weight", update),
        ("final_layer.adaLN_modulation.1.bias", tensors[f"{last}.diff_b"]),
        ("double_blocks.0.txt_attn_qkv.bias", tensors["diffusion_model.double_blocks.0.txt_attn.qkv.diff_b"]),
    ]:
        torch.testing.assert_close(found[name], native[name] + change)


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    path, tensors = tmp_path / "bad.safetensors", native_tensors(new_pairs(new_hunyuan()), hunyuan_keys)
    twice = {"transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 20)}
    twice["transformer_blocks.0.attn.to_q.lora_B.weight"] = torch.ones(20, 2)
    save_file(tensors | twice, path)
    with pytest.raises(UserError, match=r"bad\.safetensors holds the layer transformer_blocks\.0\.attn\.to_q twice"):
        read_lora(path, hunyuan_keys)
    save_file({**tensors, f"{LINEAR1}.lora_up.weight": torch.ones(60, 16)}, path)
    with pytest.raises(UserError, match=r"bad\.safetensors: a native layer of 60 outputs and 20 inputs can't hold"):
        read_lora(path, hunyuan_keys)
    del tensors[f"{QKV}.lora_up.weight"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"bad\.safetensors: the layer .*to_q, .*to_v lacks its up matrix"):
        read_lora(path, hunyuan_keys)


def test_export_goes_both_ways_and_measures_nothing(tmp_path: Path) -> None:
    model = new_hunyuan()
    FAMILY.save_folder(model, tmp_path / "base", torch.float32)
    base, pairs = Base(str(tmp_path / "base"), any=True), new_pairs(model, alpha=8.0)
    write_lora(tmp_path / "a.safetensors", pairs, None, key_map=hunyuan_keys)
    convert(FAMILY, tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers", None, base)
    convert(FAMILY, tmp_path / "b.safetensors", tmp_path / "c.safetensors", "native", None, base)
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(load_file(tmp_path / f"{n}.safetensors").values() for n in "ac"), strict=True)
    )

    merge_files(model, [str(tmp_path / "a.safetensors")], hunyuan_keys)
    full = tmp_path / "full.safetensors"
    write_safetensors(full, FAMILY.native_state(model), FAMILY.native_metadata(model))
    extract(FAMILY, full, tmp_path / "d.safetensors", "native", 4, base)
    found, _ = open_lora(str(tmp_path / "d.safetensors"), hunyuan_keys)
    same_updates(found.pairs, pairs)


@pytest.mark.parametrize("to", ["native", "diffusers"])
def test_the_door_knows_whose_lora_a_file_is(to: str, tmp_path: Path, capsys: Any) -> None:
    pairs, source, out = new_pairs(new_hunyuan()), tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    about = LoraMetadata("w2s", (Schedule((1.0, 0.0), "euler"),), "HunyuanVideoTransformer3DModel", "0" * 64)
    write_lora(source, pairs, about, format="native", key_map=hunyuan_keys)
    assert export.main(["convert", str(source), "--to", to, "--out", str(out)]) == 0
    assert "the model itself was not asked" in capsys.readouterr().out
    same_pairs(read_lora(out, hunyuan_keys)[0], pairs)
    kohya = ["lora_unet_blocks_0_ffn_0.alpha"]
    for keys, family in [(list(load_file(out)), "hunyuan_video"), (kohya, "wan"), (["x"], "wan")]:
        assert family_of_lora(keys).name == family
    with pytest.raises(UserError, match="no bundled model of the family hunyuan_video"):
        export.main(["merge", str(source), "--model", "bundled", "--out", str(tmp_path / "c")])
