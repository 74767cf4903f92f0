"""HunyuanVideo's encoders against diffusers' own pipelines."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from tiny_hunyuan import FRAMES, KINDS, POOLED, PROMPTS, SIZE, TEXT, TYPES, tiny_hunyuan
from tiny_wan import picture
from torch import Tensor

from w2svd_core.backbones.hunyuan_config import config_at
from w2svd_core.backbones.hunyuan_image import Llava, ReadFrame
from w2svd_core.backbones.hunyuan_source import HunyuanSource
from w2svd_core.backbones.hunyuan_text import PICTURE_TEMPLATE, PICTURE_TEMPLATE_TOKENS, TEMPLATE, TEMPLATE_TOKENS
from w2svd_core.backbones.hunyuan_vae import HunyuanVae
from w2svd_core.data.codec import Codec, to_signed
from w2svd_core.data.encoder_source import null_condition
from w2svd_core.errors import UserError

CPU = torch.device("cpu")
PICTURED = [kind for kind in KINDS if kind != "t2v"]
TOKENS = {"concat": 288 + 252, "replace": 144 + 252}  # the picture's, then the prompt's
LONG = "a man with red hair talks " * 40


def source_of(kind: str, **changes: Any) -> HunyuanSource:
    tiny = tiny_hunyuan(kind)
    given = {"settings": tiny.model(), "config": config_at(tiny.folder), "text_dtype": torch.float32}
    return HunyuanSource(**{**given, **changes})


@functools.cache
def pipeline_of(kind: str) -> Any:
    return tiny_hunyuan(kind).pipeline()


@functools.cache
def start_of(kind: str) -> ReadFrame:
    source = source_of(kind)
    start = source.load_start(source.load_codec())
    assert start is not None and source.starts and source.captioned
    return start


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def frame_of(image: Any) -> Tensor:
    """`1 3 1 h w` in [-1, 1] of a PIL picture."""
    return to_signed(np.array(image)[None, None])


def video_of(frames: int = FRAMES, rows: int = 1, size: tuple[int, int] = SIZE) -> Tensor:
    """Moving smooth colours, `rows 3 frames h w` in [-1, 1]."""
    coarse = torch.rand(rows, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return 2 * torch.nn.functional.interpolate(coarse, size=(frames, *size), mode="trilinear") - 1


def said_by(kind: str, prompts: list[str], image: Any = None) -> dict[str, Tensor]:
    """What diffusers' pipeline makes of prompts, zeros after their last tokens."""
    given: dict[str, Any] = {"prompt": prompts, "device": CPU}
    if image is not None:
        given |= {"image": image, "image_embed_interleave": {"concat": 2, "replace": 4}[kind]}
    with torch.no_grad():
        text, pooled, mask = pipeline_of(kind).encode_prompt(**given)
    return {"text": text * mask[..., None], "text_mask": mask.float(), "pooled": pooled}


# text


def test_the_templates_are_the_pipelines() -> None:
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video as text
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video as image

    assert {"template": TEMPLATE, "crop_start": TEMPLATE_TOKENS} == text.DEFAULT_PROMPT_TEMPLATE
    theirs = image.DEFAULT_PROMPT_TEMPLATE
    assert (theirs["template"], theirs["crop_start"]) == (PICTURE_TEMPLATE, PICTURE_TEMPLATE_TOKENS)


def test_prompts_are_what_the_pipeline_encodes() -> None:
    source = source_of("t2v")
    prompts = source.load_prompts()
    found, expected = prompts.encode(PROMPTS).fields, said_by("t2v", list(PROMPTS))
    assert found.keys() == expected.keys() and prompts.width == source.width == TEXT
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "text": (3, 256, TEXT), "text_mask": (3, 256), "pooled": (3, POOLED),
    }  # fmt: skip
    for name, value in expected.items():
        close(found[name], value)
    assert expected["text"].std() > 0.1 and expected["pooled"].std() > 0.1
    assert torch.equal(found["text"].any(-1).float(), found["text_mask"])
    assert [int(row.sum()) for row in found["text_mask"]] == [20, 50, 1]  # the empty prompt is its end alone
    null = null_condition(prompts).fields
    assert all(torch.equal(null[name], value[2:]) for name, value in prompts.encode(PROMPTS).fields.items())


def test_a_long_prompt_is_cut_and_many_are_encoded_in_slices() -> None:
    prompts = source_of("t2v").load_prompts()
    many = [LONG, *(f"a man talks {letter}" for letter in "abcdefghi")]
    found, expected = prompts.encode(many).fields, said_by("t2v", many)
    assert found["text_mask"][0].all() and len(found["text"]) == 10
    for name, value in expected.items():
        close(found[name], value)
    none = prompts.encode([]).fields
    assert [tuple(none[name].shape) for name in expected] == [(0, 256, TEXT), (0, 256), (0, POOLED)]


# the picture


@pytest.mark.parametrize("kind", PICTURED)
@pytest.mark.parametrize("prompt", [PROMPTS[1], "", LONG], ids=["one", "empty", "long"])
def test_a_picture_and_its_prompt_are_read_as_the_pipeline_reads_them(kind: str, prompt: str) -> None:
    image = picture(*SIZE)
    fields = source_of(kind).load_prompts().encode([prompt]).fields
    assert fields.keys() == {"pooled"}
    found = {**fields, **start_of(kind).encode(frame_of(image), FRAMES, [prompt])}
    expected = said_by(kind, [prompt], image)
    for name, value in expected.items():
        close(found[name], value)
    assert expected["text"].shape == (1, TOKENS[kind], TEXT) and expected["text"].std() > 0.1
    assert bool(found["text_mask"].all()) == (prompt == LONG)


@pytest.mark.parametrize("kind", PICTURED)
def test_the_first_frames_latents_are_the_pipelines(kind: str) -> None:
    pipe, image = pipeline_of(kind), picture(*SIZE)
    assert pipe.transformer.config.image_condition_type == TYPES[kind]
    pixels = pipe.video_processor.preprocess(image, *SIZE)
    _, expected = pipe.prepare_latents(pixels, 1, 16, *SIZE, FRAMES, torch.float32, CPU, None, None, TYPES[kind])
    found = start_of(kind).frame.encode(frame_of(image), FRAMES, [""])
    assert found.keys() == ({"start"} if kind == "concat" else {"first"})
    close(next(iter(found.values())), expected[:, :, :1])


def test_a_batch_is_its_rows_and_every_row_sees_its_own_picture() -> None:
    start = start_of("replace")
    first = video_of(1, rows=2)
    both = start.encode(first, FRAMES, PROMPTS[:2])
    for row in range(2):
        alone = start.encode(first[row : row + 1], FRAMES, [PROMPTS[row]])
        for name, value in alone.items():
            close(both[name][row : row + 1], value)
    other = start.encode(first[:1], FRAMES, [PROMPTS[1]])
    assert torch.equal(other["first"], both["first"][:1])
    given = both["text_mask"][1].bool()
    assert (other["text"][0][given] != both["text"][1][given]).all(-1).all()  # every token saw the picture
    assert start.fingerprint() != start_of("concat").fingerprint()


@pytest.mark.parametrize("kind", PICTURED)
def test_guidance_leads_away_from_a_black_picture_without_words(kind: str) -> None:
    from PIL import Image

    prompts = source_of(kind).load_prompts()
    null = null_condition(prompts).fields
    expected = said_by(kind, [""], Image.new("RGB", (SIZE[1], SIZE[0])))
    assert null.keys() == expected.keys() and prompts.width == TEXT
    for name, value in expected.items():
        close(null[name], value)


# latents


@pytest.mark.parametrize("frames", [1, FRAMES, 17])
def test_latents_are_scaled_as_the_pipeline_scales_them(frames: int) -> None:
    """17 frames go through it in two pieces."""
    source = source_of("t2v")
    codec: Codec = source.load_codec()
    vae = pipeline_of("t2v").vae
    video = video_of(frames, rows=1 if frames > FRAMES else 2)
    with torch.no_grad():
        found = codec.encode(video)
        raw = vae.encode(video).latent_dist.mode()
        close(codec.decode(found[:1]), vae.decode(raw[:1]).sample, 1e-3)
        close(codec.encode(video[-1:]), found[-1:], 1e-4)
    close(found, raw * vae.config.scaling_factor)
    assert found.shape[1:] == codec.geometry.latent_shape(frames, *SIZE) and found.dtype == torch.float32
    assert codec.geometry == source.geometry
    with pytest.raises(UserError, match=r"data\.height"):
        codec.encode(video[:, :, :, :-8])


def test_a_decoded_clip_is_the_pipelines() -> None:
    source, pipe = source_of("t2v"), pipeline_of("t2v")
    codec = source.load_codec()
    fields = source.load_prompts().encode(["a man talks"]).fields
    latents = torch.randn(1, *codec.geometry.latent_shape(5, *SIZE), generator=torch.Generator().manual_seed(3))
    call = {
        "prompt_embeds": fields["text"], "prompt_attention_mask": fields["text_mask"],
        "pooled_prompt_embeds": fields["pooled"], "num_inference_steps": 1, "height": SIZE[0], "width": SIZE[1],
        "num_frames": 5, "latents": latents,
    }  # fmt: skip
    clean = pipe(**call, output_type="latent").frames
    shown = pipe(**call, output_type="pt").frames.transpose(1, 2)  # in [0, 1]
    with torch.no_grad():
        close((codec.decode(clean).clamp(-1, 1) + 1) / 2, shown, 1e-3)


def test_tiles_are_used_for_large_frames_alone() -> None:
    vae = source_of("t2v").load_codec().vae
    vae.enable_tiling(32, 32, None, 24, 24)
    size = (32, 48)
    whole, tiled = (HunyuanVae(vae, tile_above=size[0] * size[1] - tiles) for tiles in (0, 1))
    video = video_of(1, size=size)
    with torch.no_grad():
        one, two = whole.encode(video), tiled.encode(video)
        mode, _ = vae.tiled_encode(video).chunk(2, dim=1)
        close(two, mode * vae.config.scaling_factor)
        back = [codec.decode(one) for codec in (whole, tiled)]
        close(back[1], vae.tiled_decode(one / vae.config.scaling_factor).sample, 1e-3)
    assert not torch.equal(one, two) and whole.fingerprint() != tiled.fingerprint()
    assert back[0].shape == back[1].shape == video.shape and not torch.equal(*back)


# tokenizers


def test_another_tokenizer_is_refused() -> None:
    from tiny_hunyuan import new_llava, new_tokenizer
    from tiny_wan import new_tokenizer as of_wan

    from w2svd_core.backbones.hunyuan_text import Llama

    llava = source_of("concat")._load_llava()
    words = llava.model.language_model
    with pytest.raises(
        UserError, match=r"makes \d+ tokens of HunyuanVideo's template, which has 95; .*model\.tokenizer"
    ):
        Llama(words, of_wan())
    words.config.vocab_size = 9
    with pytest.raises(UserError, match=r"has \d+ words, the text encoder 9; name .* in model\.tokenizer"):
        Llama(words, llava.tokenizer)
    model = new_llava(new_tokenizer()).model
    model.config.image_token_index = 7
    with pytest.raises(UserError, match=r"word for a picture is 5, the text encoder's 7; .* model\.tokenizer"):
        Llava(model, llava.tokenizer, llava.processor, 2)
