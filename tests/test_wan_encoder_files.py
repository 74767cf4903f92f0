"""Wan's encoders as files: native ones, broken ones, where they lie, and how large the published ones are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_wan import (
    FRAMES,
    KINDS,
    PROMPTS,
    TEXT,
    TinyWan,
    native_image,
    native_text,
    native_vae,
    tiny_wan,
    video_of,
)
from torch import Tensor

from w2svd_core.backbones import wan_image, wan_text, wan_vae
from w2svd_core.backbones.class_config import bundled_config
from w2svd_core.backbones.wan_encoders import Start, load_codec, load_prompts, load_start
from w2svd_core.backbones.wan_image import FrameThenGrey
from w2svd_core.backbones.wan_places import IMAGE_ENCODER, TEXT_ENCODER, VAE_2_1, VAE_2_2
from w2svd_core.backbones.wan_text import Umt5
from w2svd_core.backbones.wan_vae import WanVae
from w2svd_core.backbones.wan_variants import Kind
from w2svd_core.backbones.weights import hollow
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.settings import Model

PARTS = {"vae": load_codec, "text_encoder": load_prompts}


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@dataclass(frozen=True)
class All:
    codec: WanVae
    prompts: Umt5
    start: Start | None


def load_all(settings: Model, kind: Kind) -> All:
    codec = load_codec(settings, kind)
    return All(codec, load_prompts(settings, kind), load_start(settings, kind, codec))


@pytest.mark.parametrize("kind", KINDS)
def test_native_files_are_the_folder(kind: str) -> None:
    tiny = tiny_wan(kind)
    one, two = load_all(tiny.model(), kind), load_all(tiny.model_of_files(), kind)
    for a, b in [(one.codec.vae, two.codec.vae), (one.prompts.model, two.prompts.model)]:
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    assert one.codec.fingerprint() == two.codec.fingerprint()
    assert one.prompts.fingerprint() == two.prompts.fingerprint()
    video = video_of(tiny)
    close(two.codec.encode(video), one.codec.encode(video), 0)
    close(two.codec.decode(two.codec.encode(video)), one.codec.decode(one.codec.encode(video)), 0)
    close(two.prompts.encode(PROMPTS).fields["text"], one.prompts.encode(PROMPTS).fields["text"])
    if one.start is None or two.start is None:
        assert one.start is two.start is None
        return
    assert one.start.fingerprint() == two.start.fingerprint()
    found, expected = (start.encode(video[:, :, :1], FRAMES, [""]) for start in (two.start, one.start))
    for name, value in expected.items():
        close(found[name], value)


def test_the_native_names_of_the_vae_are_the_ones_that_diffusers_converts(tmp_path: Path) -> None:
    """Its converter knows 2.1's alone."""
    from diffusers import AutoencoderKLWan

    tiny = tiny_wan()
    found = AutoencoderKLWan.from_single_file(str(tiny.files["vae"]), config=str(tiny.folder / "vae")).state_dict()
    expected = load_codec(tiny.model(), "t2v").vae.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


NATIVE_2_2 = {  # a few names of wan/modules/vae2_2.py (Wan-Video/Wan2.2)
    "encoder.down_blocks.0.resnets.0.norm1.gamma": "encoder.downsamples.0.downsamples.0.residual.0.gamma",
    "encoder.down_blocks.1.resnets.1.conv2.weight": "encoder.downsamples.1.downsamples.1.residual.6.weight",
    "encoder.down_blocks.1.resnets.0.conv_shortcut.bias": "encoder.downsamples.1.downsamples.0.shortcut.bias",
    "encoder.down_blocks.1.downsampler.time_conv.weight": "encoder.downsamples.1.downsamples.2.time_conv.weight",
    "encoder.mid_block.attentions.0.to_qkv.weight": "encoder.middle.1.to_qkv.weight",
    "decoder.up_blocks.0.upsampler.resample.1.bias": "decoder.upsamples.0.upsamples.3.resample.1.bias",
    "decoder.up_blocks.3.resnets.2.conv1.weight": "decoder.upsamples.3.upsamples.2.residual.2.weight",
    "decoder.conv_out.weight": "decoder.head.2.weight",
    "post_quant_conv.bias": "conv2.bias",
}


def test_the_native_names_of_2_2_are_its_makers() -> None:
    names = read_safetensors(tiny_wan("ti2v").files["vae"])[0]
    from w2svd_core.backbones.wan_vae_keys import native_name

    for ours, theirs in NATIVE_2_2.items():
        assert native_name(ours, residual=True) == theirs and theirs in names


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_a_vae_file_may_have_diffusers_names_and_a_prefix(tmp_path: Path, prefix: str) -> None:
    tiny = tiny_wan("ti2v")
    state = load_codec(tiny.model(), "ti2v").vae.state_dict()
    write_safetensors(tmp_path / "vae.safetensors", {prefix + name: tensor for name, tensor in state.items()})
    found = load_codec(tiny.model(vae=str(tmp_path / "vae.safetensors")), "ti2v").vae.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in state.items())


def test_the_precision_is_the_callers_and_part_of_the_fingerprint() -> None:
    tiny = tiny_wan("i2v")
    half = torch.bfloat16
    prints = []
    for model in (tiny.model(), tiny.model_of_files()):
        prompts, codec = load_prompts(model, "i2v", dtype=half), load_codec(model, "i2v", dtype=half)
        start = load_start(model, "i2v", codec, dtype=half)
        assert isinstance(start, FrameThenGrey) and start.images is not None
        for part in (prompts.model, codec.vae, start.images.model):
            assert {p.dtype for p in part.parameters()} == {half}
        assert prompts.encode(["a man"]).fields["text"].dtype == half
        fields = start.encode(video_of(tiny, 1), 5, [""])
        assert {value.dtype for value in fields.values()} == {torch.float32}
        prints.append((prompts.fingerprint(), codec.fingerprint(), start.fingerprint()))
    assert prints[0] == prints[1]
    assert prints[0][0] != load_prompts(tiny.model(), "i2v").fingerprint()


def test_a_file_with_plain_fp8_weights_is_read(tmp_path: Path) -> None:
    tiny = tiny_wan()
    state, _ = read_safetensors(tiny.files["text_encoder"])
    small = {n: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t for n, t in state.items()}
    write_safetensors(tmp_path / "t5.safetensors", small)
    found = load_prompts(tiny.model(text_encoder=str(tmp_path / "t5.safetensors")), "t2v", dtype=torch.float16)
    name = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"
    assert torch.equal(found.model.state_dict()[name], small[name].half())
    wide = {name for name, value in found.model.state_dict().items() if value.dtype == torch.float32}
    assert wide and all(".wo." in name for name in wide)  # what transformers keeps wide beside float16


@pytest.mark.parametrize("part", ["vae", "text_encoder", "image_encoder"])
@pytest.mark.parametrize(
    "key", ["scaled_fp8", "conv1.weight_scale", "encoder.block.0.layer.0.SelfAttention.q.scale_weight"]
)
def test_a_scaled_file_is_refused_by_name(tmp_path: Path, part: str, key: str) -> None:
    tiny = tiny_wan("i2v")
    state, _ = read_safetensors(tiny.files[part])
    path = tmp_path / "scaled.safetensors"
    write_safetensors(path, {**state, key: torch.ones(1)})
    with pytest.raises(UserError, match=rf"{path}.*scaled weights \(key {key}\).*use the bf16"):
        load_all(tiny.model(**{part: str(path)}), "i2v")


@pytest.mark.parametrize("part", ["vae", "text_encoder", "image_encoder"])
@pytest.mark.parametrize("broken", ["quantised", "half", "cut", "another", "pickle", "folder of another", "no json"])
def test_a_broken_or_strange_file_is_one_sentence(tmp_path: Path, part: str, broken: str) -> None:
    tiny = tiny_wan("i2v")
    state, _ = read_safetensors(tiny.files[part])
    path = tmp_path / "file.safetensors"
    if broken == "quantised":
        path_words = "holds quantised weights"
        write_safetensors(path, {n: t.to(torch.int8) if t.ndim > 1 else t for n, t in state.items()})
    elif broken == "half":
        path_words = "not a VAE of Wan|does not hold the CLIP|not a UMT5"
        names = sorted(state)
        write_safetensors(path, {name: state[name] for name in names[: len(names) // 2]})
    elif broken == "cut":
        path_words = "is not a whole safetensors file"
        path.write_bytes(tiny.files[part].read_bytes()[:-100])
    elif broken == "another":
        path_words = "not a VAE of Wan|is not the CLIP|is not a UMT5"
        write_safetensors(path, read_safetensors(tiny.files["transformer"])[0])
    elif broken == "pickle":
        path_words = "pickled file"
        torch.save(state, path)
    elif broken == "folder of another":
        path = tiny.folder / "transformer"
        path_words = "is not a (diffusers )?folder of a"
    else:
        shutil.copytree(tiny.folder / part, tmp_path / part)
        path = tmp_path / part
        (path / "config.json").write_text("{")
        path_words = "is not JSON"
    with pytest.raises(UserError, match=rf"{path}.*({path_words})"):
        load_all(tiny.model(**{part: str(path)}), "i2v")


@pytest.mark.parametrize("part", ["vae", "text_encoder", "image_encoder"])
def test_a_folder_without_all_of_its_weights_is_refused(tmp_path: Path, part: str) -> None:
    tiny = tiny_wan("i2v")
    shutil.copytree(tiny.folder / part, tmp_path / part)
    weights = next((tmp_path / part).glob("*.safetensors"))
    state, _ = read_safetensors(weights)
    lost = [name for name in sorted(state) if name.endswith(".weight") and state[name].ndim > 1][-1]
    write_safetensors(weights, {name: tensor for name, tensor in state.items() if name != lost}, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{tmp_path / part} does not hold the"):
        load_all(tiny.model(**{part: str(tmp_path / part)}), "i2v")
    weights.unlink()
    with pytest.raises(UserError, match=rf"{tmp_path / part} could not be read as"):
        load_all(tiny.model(**{part: str(tmp_path / part)}), "i2v")


def test_a_folder_of_transformers_4_is_read(tmp_path: Path) -> None:
    tiny = tiny_wan("i2v")
    folder = tmp_path / "image_encoder"
    shutil.copytree(tiny.folder / "image_encoder", folder)
    encoder = load_image(tiny)
    write_safetensors(folder / "model.safetensors", native_image(encoder), {"format": "pt"})
    again = wan_image.load_image_encoder(folder, torch.float32).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in encoder.state_dict().items())


def load_image(tiny: TinyWan) -> Any:
    return wan_image.load_image_encoder(tiny.folder / "image_encoder", torch.float32)


# where they lie


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("vae", r"VAE is not there \(looked for {0}/vae/config\.json\).*model\.vae.*Wan2\.1-I2V-14B-480P-Diffusers"),
        ("text_encoder", r"text encoder .*{0}/text_encoder/config\.json.*model\.text_encoder.*folder text_encoder, 11"),
        ("tokenizer", r"tokenizer .*{0}/tokenizer/tokenizer\.json.*its folder in model\.tokenizer.*folder tokenizer\)"),
        ("image_encoder", r"image encoder .*{0}/image_encoder/config\.json.*model\.image_encoder.*1\.3 GB"),
    ],
)
def test_a_missing_part_says_what_was_looked_for_and_where_it_comes_from(tmp_path: Path, part: str, words: str) -> None:
    tiny = tiny_wan("i2v")
    for other in tiny.folder.iterdir():
        if other.name != part:
            (tmp_path / other.name).symlink_to(other)
    with pytest.raises(UserError, match=words.format(tmp_path)):
        load_all(tiny.model(path=str(tmp_path)), "i2v")
    elsewhere = tiny.model(path=str(tmp_path), **{part: str(tiny.folder)})  # the pipeline that has it is enough
    assert load_all(elsewhere, "i2v").prompts.width == TEXT


@pytest.mark.parametrize("setting", ["vae", "text_encoder", "tokenizer", "image_encoder"])
def test_a_named_place_that_is_not_there_is_named(tmp_path: Path, setting: str) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(UserError, match=rf"looked for {gone}/.*in model\.{setting}, which is published in"):
        load_all(tiny_wan("i2v").model(**{setting: str(gone)}), "i2v")


@pytest.mark.parametrize(("kind", "name"), [("t2v", "Wan2.1-T2V"), ("ti2v", "Wan2.2-TI2V-5B")])
def test_a_model_of_one_file_has_no_encoders_beside_it(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "wan.safetensors"
    shutil.copy(tiny_wan(kind).files["transformer"], path)
    for load in PARTS.values():
        with pytest.raises(UserError, match=rf"is not there .*published in the repository Wan-AI/{name}"):
            load(tiny_wan(kind).model(path=str(path)), kind)


@pytest.mark.parametrize("inside", ["transformer", "transformer/diffusion_pytorch_model.safetensors"])
def test_the_parts_of_a_pipeline_are_found_from_its_transformer(inside: str) -> None:
    tiny = tiny_wan()
    assert load_all(tiny.model(path=str(tiny.folder / inside)), "t2v").prompts.width == TEXT


def test_a_text_encoder_brings_its_tokenizer(tmp_path: Path) -> None:
    tiny = tiny_wan()
    for named in (tiny.folder, tiny.folder / "text_encoder"):
        found = load_prompts(tiny.model(path=str(tmp_path), text_encoder=str(named)), "t2v")
        assert found.encode(["a man"]).fields["text"].any()


Make = Callable[[], Any]


@pytest.mark.parametrize(
    ("part", "make"),
    [
        (VAE_2_1, lambda: published_vae("wan2.1-vae")),
        (VAE_2_2, lambda: published_vae("wan2.2-vae")),
        (TEXT_ENCODER, lambda: published_text()),
        (IMAGE_ENCODER, lambda: published_image()),
    ],
    ids=["vae 2.1", "vae 2.2", "text", "image"],
)
def test_the_sizes_told_are_those_of_the_published_configs(part: Any, make: Make) -> None:
    """And the names and shapes of a published model tell its config."""
    weights = make()
    numbers = sum(value.numel() for name, value in weights.items() if name != "encoder.embed_tokens.weight")
    assert part.gigabytes == pytest.approx(2e-9 * numbers, rel=0.05)


def published_vae(name: str) -> dict[str, Tensor]:
    from diffusers import AutoencoderKLWan

    config = bundled_config(name)
    model: Any = hollow(lambda: AutoencoderKLWan.from_config(config))
    native = native_vae(model)
    found = wan_vae.vae_config({key: list(value.shape) for key, value in native.items()})
    assert found == config
    return native


def published_text() -> dict[str, Tensor]:
    from transformers import UMT5Config, UMT5EncoderModel

    config = bundled_config("umt5-xxl")
    model = hollow(lambda: UMT5EncoderModel(UMT5Config(**config)))
    names = wan_text.transformers_names([name for name in native_text(model) if name != "spiece_model"])
    state = model.state_dict()
    assert names.keys() == state.keys()
    assert wan_text.umt5_sizes({name: list(state[name].shape) for name in names}) == config
    return state


def published_image() -> dict[str, Tensor]:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = bundled_config("clip-vision-h")
    model = hollow(lambda: CLIPVisionModel(CLIPVisionConfig(**config)))
    state = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    assert wan_image.clip_sizes({name: list(value.shape) for name, value in state.items()}) == config
    return state
