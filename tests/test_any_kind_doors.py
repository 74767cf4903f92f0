"""What a user of any kind may do or must be told: prompts alone, LoRAs of other families, other encoders.

One kind always, the others slow; the way from clips to a clip: `test_family_doors`.
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
from tiny_wan import PROMPTS

from w2svd_core import prepare, sample, train
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.lora_files import has_place

LAYERS = ("blocks.0.self_attn.q", "double_blocks.0.img_attn.qkv")  # Wan's, HunyuanVideo's


def of(kinds: list[Kind]) -> pytest.MarkDecorator:
    marked = [kind if str(kind) == "wan-t2v" else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]
    return pytest.mark.parametrize("kind", marked, ids=str)


@of([kind for kind in KINDS if not kind.picture])
def test_prompts_alone_are_enough(kind: Kind, tmp_path: Path, door: Door) -> None:
    """Backward simulation needs no clips."""
    made = House(kind, tmp_path)
    made.recipe()  # leaves fine.yaml
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS[:2]))
    given = [*made.plain, "--data.prompts", prompts]
    shutil.rmtree(tmp_path / "clips")
    code, _, err = door(prepare.main, *given)
    assert code == 0, err
    code, _, err = door(train.main, *given, "--out", made.run)
    assert code == 0 and student(made.run).is_file(), err
    for key, value in (
        ("--rollout.source", "noised_data"),
        ("--first", tmp_path / "fine.yaml"),
        ("--evaluate.clips", 50),
    ):
        code, _, err = door(train.main, *given, key, value, "--out", tmp_path / "no")
        assert code == 2 and "prompts alone" in err


@of([*KINDS])
def test_a_lora_of_another_family_is_refused_everywhere(kind: Kind, tmp_path: Path, door: Door) -> None:
    made, lora = House(kind, tmp_path), tmp_path / "other.safetensors"
    stems = [f"diffusion_model.{layer}" for layer in LAYERS]
    stem = next(one for one in stems if not has_place(f"{one}.lora_down.weight", kind.backbone.keys))
    write_safetensors(lora, {f"{stem}.lora_down.weight": torch.ones(2, 8), f"{stem}.lora_up.weight": torch.ones(24, 2)})
    assert door(prepare.main, *made.plain)[0] == 0
    for key in ("--model.loras", "--student.init"):
        code, _, err = door(train.main, *made.plain, key, lora, "--out", tmp_path / "no")
        assert code == 2 and "other.safetensors has 2 keys that this model has no place for" in err
    asked = ["--teacher", "--recipe", kind.recipe, *made.model, *made.data, *made.asked]
    code, _, err = door(sample.main, *asked, "--lora", lora, "--out", tmp_path / "clip.mp4")
    assert code == 2 and "other.safetensors has 2 keys" in err


@of([*KINDS])
def test_shards_of_another_text_encoder_are_refused(kind: Kind, tmp_path: Path, door: Door) -> None:
    """The same clips and model; only the text encoder's weights are others."""
    made = House(kind, tmp_path)
    assert door(prepare.main, *made.plain)[0] == 0
    other = tmp_path / "other"
    shutil.copytree(made.tiny.folder / "text_encoder", other)
    weights = next(other.glob("*.safetensors"))
    tensors, _ = read_safetensors(weights)
    name = min(tensors)
    write_safetensors(weights, tensors | {name: tensors[name] + 1}, {"format": "pt"})
    code, _, err = door(train.main, *made.plain, "--model.text_encoder", other, "--out", tmp_path / "no")
    assert code == 2 and "with another text encoder or negative prompt" in err  # and start, where it reads captions
