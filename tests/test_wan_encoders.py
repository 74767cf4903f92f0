"""Wan's encoders against diffusers' own pipelines, from folders and from native single files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_wan import (
    FRAMES,
    KINDS,
    PROMPTS,
    TEXT,
    picture,
    tiny_wan,
    video_of,
)
from torch import Tensor

from w2svd_core.backbones import wan_text
from w2svd_core.backbones.wan_encoders import load_codec, load_prompts, load_start
from w2svd_core.backbones.wan_image import FrameThenGrey
from w2svd_core.backbones.wan_text import Umt5, clean
from w2svd_core.backbones.wan_vae import WanVae
from w2svd_core.data.codec import Codec, load_portrait_codec, to_signed
from w2svd_core.data.prompts import PromptEncoder
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors, write_safetensors

HAS_FTFY = importlib.util.find_spec("ftfy") is not None


@pytest.fixture(autouse=True)
def no_ftfy_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' pipelines call ftfy unasked; where it is missing, plain ASCII is what it would give back anyway."""
    from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v

    for module in () if HAS_FTFY else (pipeline_wan, pipeline_wan_i2v):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# text


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_what_the_pipeline_encodes(kind: str) -> None:
    tiny = tiny_wan(kind)
    prompts: PromptEncoder = load_prompts(tiny.model(), kind, negative_prompt="blurry, grey")
    found = prompts.encode(PROMPTS).fields["text"]
    expected, negative = tiny.pipeline().encode_prompt(
        list(PROMPTS), ["blurry, grey"] * len(PROMPTS), max_sequence_length=512
    )
    assert found.shape == (3, 512, TEXT) and prompts.width == TEXT
    close(found, expected)
    assert torch.equal(found == 0, expected == 0)  # zeros after the last token, and nowhere else
    close(prompts.null().fields["text"], negative[:1])


def test_a_long_prompt_is_cut_and_many_are_encoded_in_slices() -> None:
    tiny, long = tiny_wan(), "a man with red hair talks " * 60
    prompts = load_prompts(tiny.model(), "t2v")
    expected, _ = tiny.pipeline().encode_prompt([long], max_sequence_length=512)
    many = prompts.encode([long, *[f"a man talks {i}" for i in range(9)]]).fields["text"]
    assert many.shape == (10, 512, TEXT) and many[0, -1].any()
    close(many[:1], expected)
    close(many[9:], prompts.encode(["a man talks 8"]).fields["text"])
    assert prompts.encode([]).fields["text"].shape == (0, 512, TEXT)


def test_the_null_is_the_empty_prompt_unless_a_negative_one_is_given() -> None:
    prompts = load_prompts(tiny_wan().model(), "t2v")
    null = prompts.null().fields["text"]
    assert torch.equal(null, prompts.encode([""]).fields["text"])
    assert null[0, 0].any() and not null[0, 1:].any()  # the end mark alone, which is not nothing


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [("  a\tman\n talks ", "a man talks"), ("salt &amp;amp; pepper", "salt & pepper"), ("", "")],
)
def test_prompts_are_cleaned_as_the_pipeline_does(raw: str, cleaned: str) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert clean(raw) == cleaned == prompt_clean(raw)


@pytest.mark.parametrize("raw", ["色调艳丽，过曝", "it’s “quoted”", "naïve schÃ¶n"])
def test_other_letters_are_cleaned_by_ftfy_or_refused(raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    if HAS_FTFY:
        assert clean(raw) == prompt_clean(raw) != raw
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match=r"not plain ASCII.*pip install ftfy"):
        clean(raw)


def test_wans_own_names_of_umt5_are_read_too(tmp_path: Path) -> None:
    tiny = tiny_wan()
    whole, _ = read_safetensors(tiny.files["text_encoder"])
    parts = {ours: theirs for theirs, ours in wan_text._BLOCK.items()}
    original = {}
    for name, tensor in whole.items():
        module, _, leaf = name.rpartition(".")
        if name.startswith("encoder.block."):
            _, _, index, rest = module.split(".", 3)
            original[f"blocks.{index}.{parts[rest]}.{leaf}"] = tensor
        elif name != "spiece_model":
            original[{"shared": "token_embedding", "encoder.final_layer_norm": "norm"}[module] + ".weight"] = tensor
    assert "blocks.1.pos_embedding.embedding.weight" in original and len(original) == len(whole) - 1
    write_safetensors(tmp_path / "umt5.safetensors", original)
    found = load_prompts(tiny.model(text_encoder=str(tmp_path / "umt5.safetensors")), "t2v")
    assert found.fingerprint() == load_prompts(tiny.model(), "t2v").fingerprint()


def test_a_tokenizer_of_another_encoder_is_refused() -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = load_prompts(tiny_wan().model(), "t2v").tokenizer
    small = UMT5EncoderModel(UMT5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(UserError, match=r"has \d+ words, the text encoder 9; name .* model\.tokenizer"):
        Umt5(small, tokenizer)


# latents


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_scaled_as_the_pipeline_scales_them(kind: str) -> None:
    tiny = tiny_wan(kind)
    codec: Codec = load_codec(tiny.model(), kind)
    vae = tiny.pipeline().vae
    video = video_of(tiny, rows=2)
    found = codec.encode(video)
    assert found.shape[1:] == codec.geometry.latent_shape(FRAMES, *tiny.size) and found.dtype == torch.float32
    assert (codec.geometry.channels, codec.geometry.space) == ((48, 16) if kind == "ti2v" else (16, 8))

    raw = vae.encode(video).latent_dist.mode()
    mean, std = (torch.tensor(vae.config[name])[:, None, None, None] for name in ("latents_mean", "latents_std"))
    close(found, (raw - mean) / std)
    close(codec.decode(found), vae.decode(raw).sample, 1e-4)
    close(codec.encode(video[1:]), found[1:])
    with pytest.raises(UserError, match=r"data\.height"):
        codec.encode(video[:, :, :, :-8])


@pytest.mark.parametrize("kind", ["t2v", "ti2v"])
def test_a_decoded_clip_is_the_pipelines(kind: str) -> None:
    tiny = tiny_wan(kind)
    pipe, codec = tiny.pipeline(), load_codec(tiny.model(), kind)
    latents = torch.randn(1, *codec.geometry.latent_shape(5, *tiny.size), generator=torch.Generator().manual_seed(3))
    text = load_prompts(tiny.model(), kind).encode(["a man talks"]).fields["text"]
    height, width = tiny.size
    call = {
        "prompt_embeds": text, "guidance_scale": 1.0, "num_inference_steps": 1, "height": height, "width": width,
        "num_frames": 5, "latents": latents,
    }  # fmt: skip
    clean_latents = pipe(**call, output_type="latent").frames
    shown = pipe(**call, output_type="pt").frames.transpose(1, 2)  # in [0, 1]
    close((codec.decode(clean_latents) + 1) / 2, shown, 1e-4)


@pytest.mark.parametrize("kind", ["t2v", "ti2v"])
def test_tiles_are_used_for_large_frames_alone_and_fit_together(kind: str) -> None:
    """The tiny VAE sees far beyond a tile's seam, so that a tiled clip is near the whole one, not equal to it."""
    tiny = tiny_wan(kind)
    vae = load_codec(tiny.model(), kind).vae
    vae.enable_tiling(32, 32, 16, 16)  # 2.2 counts the pixels of a tile after they were folded two by two
    height, width = (64, 128) if kind == "ti2v" else (48, 64)
    whole, tiled = (WanVae(vae, tile_above=height * width - tiles) for tiles in (0, 1))
    video = torch.nn.functional.interpolate(video_of(tiny, 1), size=(1, height, width), mode="trilinear")
    one, two = whole.encode(video), tiled.encode(video)
    assert not torch.equal(one, two) and whole.fingerprint() != tiled.fingerprint()
    assert (one - two).abs().mean() < 0.3 * one.std()
    back = [codec.decode(one) for codec in (whole, tiled)]
    assert back[0].shape == back[1].shape == video.shape and not torch.equal(*back)
    assert (back[0] - back[1]).abs().mean() < 0.3 * back[0].std()


# the first frame


def test_image_to_video_is_shown_what_the_pipeline_shows() -> None:
    tiny = tiny_wan("i2v")
    pipe, (height, width) = tiny.pipeline(), tiny.size
    image = picture(height, width)
    start = load_start(tiny.model(), "i2v", load_codec(tiny.model(), "i2v"))
    assert isinstance(start, FrameThenGrey)
    first = to_signed(np.array(image)[None, None])
    found = start.encode(first, FRAMES, [""])
    pixels = pipe.video_processor.preprocess(image, height=height, width=width)
    close(pixels, first[:, :, 0])
    _, condition = pipe.prepare_latents(pixels, 1, 16, height, width, FRAMES, torch.float32, torch.device("cpu"))
    assert found["start"].shape == (1, 16, 3, height // 8, width // 8)
    close(found["start"], condition[:, 4:])
    assert torch.equal(condition[:, :4, 0], torch.ones_like(condition[:, :4, 0])) and not condition[:, :4, 1:].any()
    close(found["image"], pipe.encode_image(image, torch.device("cpu")))
    assert found["image"].shape == (1, 5, 160)


def test_a_batch_of_first_frames_is_the_frames_one_by_one() -> None:
    tiny = tiny_wan("i2v")
    start = load_start(tiny.model(), "i2v", load_codec(tiny.model(), "i2v"))
    assert start is not None
    first = video_of(tiny, 1, rows=2)
    both = start.encode(first, 5, ["", ""])
    for name, value in start.encode(first[1:], 5, [""]).items():
        close(both[name][1:], value)


def test_ti2v_is_shown_the_first_frame_alone() -> None:
    tiny = tiny_wan("ti2v")
    pipe, (height, width) = tiny.pipeline(image=True), tiny.size
    image = picture(height, width)
    start = load_start(tiny.model(), "ti2v", load_codec(tiny.model(), "ti2v"))
    assert start is not None
    first = to_signed(np.array(image)[None, None])
    pixels = pipe.video_processor.preprocess(image, height=height, width=width)
    _, condition, mask = pipe.prepare_latents(pixels, 1, 48, height, width, FRAMES, torch.float32, torch.device("cpu"))
    found = start.encode(first, FRAMES, [""])
    close(found["start"], condition)
    assert found.keys() == {"start"} and found["start"].shape[2] == 1
    assert not mask[:, :, 0].any() and mask[:, :, 1:].all()


def test_text_to_video_is_shown_nothing_and_a_model_without_image_embedding_no_embedding() -> None:
    tiny = tiny_wan()
    codec = load_codec(tiny.model(), "t2v")
    assert load_start(tiny.model(), "t2v", codec) is None
    start = load_start(tiny.model(), "i2v", codec, image=False)
    assert start is not None and start.encode(video_of(tiny, 1), 5, [""]).keys() == {"start"}


def test_any_codec_can_show_a_first_frame() -> None:
    from w2svd_core.assembly import BUNDLED_CODEC

    codec = load_portrait_codec(BUNDLED_CODEC)
    found = FrameThenGrey(codec, None).encode(torch.rand(2, 3, 1, 32, 32), 17, ["", ""])["start"]
    assert found.shape == (2, 16, 5, 8, 8)


# folders and files
