"""HunyuanVideo 1.5's encoders against diffusers' own pipelines, from folders and from single files."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_hunyuan15 import GLYPHS, PATCH, SIZE, TEXT, new_tokenizer, tiny_hunyuan15
from tiny_wan import FRAMES, picture
from torch import Tensor

from w2svd_core.backbones.hunyuan15_config import config_at
from w2svd_core.backbones.hunyuan15_glyphs import load_byt5, quoted
from w2svd_core.backbones.hunyuan15_image import load_siglip
from w2svd_core.backbones.hunyuan15_source import Hunyuan15Source
from w2svd_core.backbones.hunyuan15_text import BEFORE, SYSTEM, Qwen, load_qwen
from w2svd_core.backbones.hunyuan15_vae import TILE_ABOVE, Hunyuan15Vae, load_vae
from w2svd_core.data.codec import to_signed
from w2svd_core.data.encoder_source import null_condition
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors, write_safetensors

CPU = torch.device("cpu")
PROMPTS = (
    "a man talks",
    'a sign says "Tea & cake" and “热茶”, then “热茶” again',
    "",
    "a woman nods slowly " * 60,
    f'"{"so long " * 60}" is on the wall',
    'an empty "" and a lone " mark',
)
LOADERS = {"vae": load_vae, "text_encoder": load_qwen, "text_encoder_2": load_byt5, "image_encoder": load_siglip}


def source_of(kind: str, **changes: Any) -> Hunyuan15Source:
    tiny = tiny_hunyuan15(kind)
    given = {"settings": tiny.model(), "config": config_at(tiny.folder), "text_dtype": torch.float32}
    return Hunyuan15Source(**{**given, **changes})


@functools.cache
def pipeline_of(kind: str) -> Any:
    return tiny_hunyuan15(kind).pipeline()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# ---- text


def test_the_chat_is_the_pipelines() -> None:
    for kind in ("t2v", "i2v"):
        pipe = pipeline_of(kind)
        assert pipe.system_message == SYSTEM and pipe.prompt_template_encode_start_idx == BEFORE


def test_words_in_quotes_are_the_pipelines() -> None:
    from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import extract_glyph_texts

    for prompt in PROMPTS:
        assert quoted(prompt) == (extract_glyph_texts(prompt) or "")
    assert quoted(PROMPTS[1]) == 'Text "Tea & cake". Text "热茶". '


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_prompts_are_the_pipelines(kind: str) -> None:
    prompts = source_of(kind).load_prompts()
    found = prompts.encode(PROMPTS).fields
    with torch.no_grad():
        text, mask, glyphs, glyphs_mask = pipeline_of(kind).encode_prompt(
            prompt=list(PROMPTS), device=CPU, batch_size=len(PROMPTS)
        )
    assert found["text"].shape == (6, 1000, TEXT) and found["glyphs"].shape == (6, 256, GLYPHS)
    for name, value in {"text_mask": mask, "glyphs_mask": glyphs_mask}.items():
        assert torch.equal(found[name], value.float()), name
    expected = text * mask[..., None]
    assert (found["text"] - expected).abs().max() < 1e-4 * expected.abs().max()
    close(found["glyphs"], glyphs * glyphs_mask[..., None])
    assert not found["text"][mask == 0].any() and mask[3].sum() > mask[0].sum()
    assert [int(n) for n in glyphs_mask.sum(dim=1)][::2] == [0, 0, 256]
    null = null_condition(prompts).fields
    assert all(torch.equal(value[0], found[name][2]) for name, value in null.items())
    assert all(len(value) == 0 for value in prompts.encode([]).fields.values())


def test_another_tokenizer_is_one_sentence() -> None:
    prompts, tokenizer = source_of("t2v").load_prompts(), new_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "user").replace("<|im_start|>", "", 1)
    with pytest.raises(UserError, match=r"makes 106 tokens of what stands before a prompt, .* makes 108"):
        Qwen(prompts.qwen.model, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"has no chat template"):
        Qwen(prompts.qwen.model, tokenizer)
    tokenizer.add_tokens(["more"])
    with pytest.raises(UserError, match=r"name the text encoder's own tokenizer in model\.tokenizer"):
        Qwen(prompts.qwen.model, tokenizer)


def test_a_tokenizer_that_pads_on_the_left_makes_the_same(tmp_path: Path) -> None:
    tiny = tiny_hunyuan15()
    shutil.copytree(tiny.folder / "tokenizer", tmp_path / "tokenizer")
    place = tmp_path / "tokenizer" / "tokenizer_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "padding_side": "left"}))
    other = source_of("t2v", settings=tiny.model(tokenizer=str(tmp_path / "tokenizer"))).load_prompts()
    assert other.qwen.tokenizer.padding_side == "left"
    for name, value in other.encode(PROMPTS[:2]).fields.items():
        assert torch.equal(value, source_of("t2v").load_prompts().encode(PROMPTS[:2]).fields[name])


def test_a_whole_qwen_will_do(tmp_path: Path) -> None:
    """As Qwen publishes it, eyes and head included."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    alone: Any = source_of("t2v").load_prompts().qwen.model
    eyes = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": TEXT}
    whole = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=alone.config.to_dict(), vision_config={**eyes, "fullatt_block_indexes": [0]})
    )
    whole.model.language_model.load_state_dict(alone.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    found = load_qwen(tmp_path / "whole", torch.float32).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in alone.state_dict().items())


# ---- a first frame


def test_a_first_frame_is_what_the_pipeline_shows() -> None:
    pipe, source = pipeline_of("i2v"), source_of("i2v")
    image = picture(*SIZE)
    start = source.load_start(source.load_codec())
    assert start is not None and not source.captioned
    found = start.encode(to_signed(np.array(image)[None, None]), FRAMES, ["anything"])
    height, width = SIZE
    with torch.no_grad():
        patches = pipe.encode_image(image=image, batch_size=1, device=CPU, dtype=torch.float32)
        latents, mask = pipe.prepare_cond_latents_and_mask(
            torch.zeros(1, 32, 3, 1, 2), image, 1, height, width, torch.float32, CPU
        )
    assert found["image"].shape == (1, 4, PATCH)
    close(found["image"], patches)
    close(found["start"], latents[:, :, :1])
    assert not latents[:, :, 1:].any() and mask[:, :, 0].all() and not mask[:, :, 1:].any()


def test_without_an_image_processor_the_usual_one_is_taken() -> None:
    """As beside single files."""
    first = to_signed(np.array(picture(*SIZE))[None, None])
    found = []
    for source in (source_of("i2v"), source_of("i2v", settings=tiny_hunyuan15("i2v").model_of_files())):
        start = source.load_start(source.load_codec())
        assert start is not None
        found.append((start.images.encode(first), source.fingerprints()["start"]))
    (own, named), (usual, other) = found
    assert torch.equal(own, usual) and named != other


@pytest.mark.parametrize(("size", "tile_above"), [(SIZE, TILE_ABOVE), ((272, 16), 0)], ids=["whole", "in tiles"])
def test_the_codec_is_the_vae(size: tuple[int, int], tile_above: int) -> None:
    tiny, vae = tiny_hunyuan15(), pipeline_of("t2v").vae
    codec = Hunyuan15Vae(load_vae(tiny.folder / "vae", torch.float32), tile_above=tile_above)
    coarse = torch.rand(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    video = 2 * torch.nn.functional.interpolate(coarse, size=(5, *size), mode="trilinear") - 1
    vae.use_tiling = not tile_above
    with torch.no_grad():
        latents = codec.encode(video)
        close(latents, vae.encode(video).latent_dist.mode() * vae.config.scaling_factor)
        close(codec.decode(latents), vae.decode(latents / vae.config.scaling_factor).sample)
    vae.use_tiling = False
    assert codec.vae.use_tiling == (not tile_above)
    assert latents.shape[1:] == codec.geometry.latent_shape(5, *size) == (32, 2, size[0] // 16, size[1] // 16)


# ---- folders and files


@pytest.mark.parametrize("part", LOADERS)
def test_a_single_file_is_the_folder(part: str) -> None:
    tiny, load = tiny_hunyuan15("i2v"), LOADERS[part]
    one, two = (load(place, torch.float32) for place in (tiny.folder / part, tiny.files[part]))
    before, after = one.state_dict(), two.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert {weight.dtype for weight in load(tiny.files[part], torch.bfloat16).state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize("broken", ["scaled", "half", "another", "folder of another"])
def test_a_broken_or_strange_file_is_one_sentence(tmp_path: Path, part: str, broken: str) -> None:
    tiny = tiny_hunyuan15("i2v")
    state, _ = read_safetensors(tiny.files[part])
    path = tmp_path / "file.safetensors"
    words = {
        "scaled": "scaled weights",
        "half": "does not hold (the|a whole)",
        "another": "it is not (a|the) (VAE of HunyuanVideo 1.5|Qwen2.5-VL|ByT5|SigLIP)",
        "folder of another": "is not a( diffusers)? folder of an? .*; check model",
    }
    if broken == "scaled":
        state[f"{max(state)}.scale_weight"] = torch.ones(1)
    elif broken == "half":
        del state[next(name for name in sorted(state) if ".1." in name)]
    elif broken == "another":
        state = {"block.weight": torch.zeros(2, 2)}
    write_safetensors(path, state)
    place = tiny.folder / "transformer" if broken == "folder of another" else path
    with pytest.raises(UserError, match=f"{place}.*{words[broken]}"):
        LOADERS[part](place, torch.float32)


@pytest.mark.parametrize("folder", ["vae", "text_encoder", "text_encoder_2", "tokenizer_2", "image_encoder"])
def test_a_missing_part_is_named_with_its_setting(tmp_path: Path, folder: str) -> None:
    tiny = tiny_hunyuan15("i2v")
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_encoder"):
        if part != folder:
            (tmp_path / part).symlink_to(tiny.folder / part)
    source = source_of("i2v", settings=tiny.model(path=str(tmp_path)))
    with pytest.raises(UserError, match=rf"{folder}.* name its folder.* in model\.{folder}, .*480p_i2v"):
        source.fingerprints()
