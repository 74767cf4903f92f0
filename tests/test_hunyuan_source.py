"""HunyuanVideo's encoders on disk: folders and single files, broken and missing ones."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hunyuan_encoders import close, source_of, start_of, video_of
from tiny_hunyuan import FRAMES, KINDS, PROMPTS, native_clip, native_llama, native_vae, tiny_hunyuan
from torch import Tensor, nn

from w2svd_core.backbones import clip_text, hunyuan_image, hunyuan_text, hunyuan_vae
from w2svd_core.backbones.class_config import bundled_config
from w2svd_core.backbones.clip_vision import vision_sizes
from w2svd_core.backbones.hunyuan_places import CLIP, IMAGE_ENCODER, LLAMA, LLAVA, VAE
from w2svd_core.backbones.weights import hollow
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors, write_safetensors

PARTS = ["vae", "text_encoder", "text_encoder_2", "image_encoder"]


def all_of(kind: str, **changes: Any) -> tuple[Any, Any, Any]:
    """Every encoder of the single files, or of what takes their place."""
    source = source_of(kind, settings=tiny_hunyuan(kind).model_of_files(**changes))
    codec = source.load_codec()
    return source.load_prompts(), codec, source.load_start(codec)


# folders and files


@pytest.mark.parametrize("kind", KINDS)
def test_single_files_are_the_folder(kind: str) -> None:
    prompts, codec, start = all_of(kind)
    folder = source_of(kind)
    assert codec.fingerprint() == folder.load_codec().fingerprint()
    assert prompts.clip.fingerprint() == folder.load_prompts().clip.fingerprint()
    found = source_of(kind, settings=tiny_hunyuan(kind).model_of_files()).fingerprints()
    assert found["codec"] and found["text"] and bool(found["start"]) == (kind != "t2v")
    if kind == "t2v":
        assert prompts.fingerprint() == folder.load_prompts().fingerprint()
        return
    one, two = (llava.model.state_dict() for llava in (start_of(kind).llava, start.llava))
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    first = video_of(1)
    for name, value in start_of(kind).encode(first, FRAMES, PROMPTS[:1]).items():
        close(start.encode(first, FRAMES, PROMPTS[:1])[name], value)


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_a_vae_may_have_the_names_that_comfyui_saves(tmp_path: Path, prefix: str) -> None:
    state = source_of("t2v").load_codec().vae.state_dict()
    other = {f"{prefix}{hunyuan_vae.other_name(name)}": as_convolution(name, value) for name, value in state.items()}
    for name in ("encoder.down.2.block.0.conv1.conv.weight", "decoder.up.3.upsample.conv.conv.bias",
                 "decoder.up.0.block.1.norm2.weight", "encoder.mid.attn_1.proj_out.bias",
                 "decoder.mid.block_2.norm1.bias", "encoder.norm_out.weight", "quant_conv.weight"):  # fmt: skip
        assert f"{prefix}{name}" in other
    write_safetensors(tmp_path / "vae.safetensors", other)
    found = hunyuan_vae.load_vae(tmp_path / "vae.safetensors", torch.float32).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in state.items())


def as_convolution(name: str, value: Tensor) -> Tensor:
    return value[..., None, None, None] if ".attentions.0.to_" in name and value.ndim == 2 else value.clone()


def test_folders_of_transformers_4_are_read(tmp_path: Path) -> None:
    """The published ones."""
    tiny = tiny_hunyuan("concat")
    folder = tmp_path / "text_encoder"
    shutil.copytree(tiny.folder / "text_encoder", folder)
    state, _ = read_safetensors(tiny.files["text_encoder"])
    old = {f"language_model.{name}": value for name, value in state.items()}
    image, _ = read_safetensors(tiny.files["image_encoder"])
    old |= {name if name.startswith("multi_modal") else f"vision_tower.{name}": t for name, t in image.items()}
    assert "language_model.model.layers.0.mlp.up_proj.weight" in old and "language_model.lm_head.weight" in old
    write_safetensors(folder / "model.safetensors", old, {"format": "pt"})
    found = hunyuan_image.load_llava(folder, None, None, torch.float32).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in start_of("concat").llava.model.state_dict().items())


def test_the_tokenizer_is_read_as_written_whatever_class_its_config_names(tmp_path: Path) -> None:
    tiny = tiny_hunyuan()
    shutil.copytree(tiny.folder / "tokenizer", tmp_path / "tokenizer")
    place = tmp_path / "tokenizer" / "tokenizer_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "tokenizer_class": "LlamaTokenizer"}))
    source = source_of("t2v", settings=tiny.model(tokenizer=str(tmp_path / "tokenizer")))
    found, expected = (one.load_prompts().encode(PROMPTS).fields["text"] for one in (source, source_of("t2v")))
    close(found, expected)


def test_the_precision_is_the_text_encoders_and_part_of_the_fingerprint() -> None:
    source = source_of("concat", text_dtype=torch.bfloat16)
    start = source.load_start(source.load_codec())
    assert start is not None
    fields = {**start.encode(video_of(1), FRAMES, PROMPTS[:1]), **source.load_prompts().encode(PROMPTS[:1]).fields}
    assert {name: value.dtype for name, value in fields.items()} == {
        "start": torch.float32, "text": torch.bfloat16, "text_mask": torch.float32, "pooled": torch.bfloat16,
    }  # fmt: skip
    one, two = source.fingerprints(), source_of("concat").fingerprints()
    assert one["codec"] == two["codec"] and one["text"] != two["text"] and one["start"] != two["start"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("broken", ["scaled", "half", "cut", "another", "folder of another"])
def test_a_broken_or_strange_file_is_one_sentence(tmp_path: Path, part: str, broken: str) -> None:
    tiny = tiny_hunyuan("concat")
    state, _ = read_safetensors(tiny.files[part])
    path = tmp_path / "file.safetensors"
    names = sorted(state)
    strange = "not a VAE of HunyuanVideo|not a LLaMA|not a CLIP text|not the image encoder of LLaVA"
    words = {"cut": "is not a whole safetensors file", "scaled": "scaled weights", "another": strange}
    if broken == "cut":
        path.write_bytes(tiny.files[part].read_bytes()[:-100])
    elif broken == "folder of another":
        path = tiny.folder / "transformer"
    else:
        other, _ = read_safetensors(tiny.files["text_encoder" if part == "vae" else "vae"])
        half = {name: state[name] for name in names[: len(names) // 2]}
        scaled = {**state, "layers.0.scale_weight": torch.ones(1)}
        write_safetensors(path, {"scaled": scaled, "half": half, "another": other}[broken])
    message = words.get(broken, f"does not hold|{strange}|is not a (diffusers )?folder of a|is a folder")
    with pytest.raises(UserError, match=rf"{path}.*({message})"):
        all_of("concat", **{part: str(path)})


def test_a_vae_of_hunyuanvideo_1_5_is_named(tmp_path: Path) -> None:
    state, _ = read_safetensors(tiny_hunyuan().files["vae"])
    state["post_quant_conv.weight"] = torch.zeros(32, 32, 1, 1, 1)
    write_safetensors(tmp_path / "vae.safetensors", state)
    with pytest.raises(UserError, match=r"a VAE of 32 latent channels is not HunyuanVideo's \(16\)"):
        hunyuan_vae.load_vae(tmp_path / "vae.safetensors", torch.float32)


# where they lie


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("vae", r"VAE is not there \(looked for {0}/vae/config\.json\).*model\.vae.*HunyuanVideo-I2V-33ch"),
        ("text_encoder", r"text encoder .*{0}/text_encoder/config\.json.*model\.text_encoder,.*16\.7 GB"),
        ("tokenizer", r"tokenizer .*{0}/tokenizer/tokenizer\.json.*its folder in model\.tokenizer,"),
        ("text_encoder_2", r"second text encoder .*{0}/text_encoder_2/config\.json.*model\.text_encoder_2,.*0\.25 GB"),
        ("tokenizer_2", r"second tokenizer .*{0}/tokenizer_2/tokenizer\.json.*its folder in model\.tokenizer_2,"),
    ],
)
def test_a_missing_part_says_what_was_looked_for_and_where_it_comes_from(tmp_path: Path, part: str, words: str) -> None:
    tiny = tiny_hunyuan("concat")
    for other in tiny.folder.iterdir():
        if other.name != part:
            (tmp_path / other.name).symlink_to(other)
    source = source_of("concat", settings=tiny.model(path=str(tmp_path)))
    with pytest.raises(UserError, match=words.format(tmp_path)):
        source.fingerprints()
    elsewhere = tiny.model(path=str(tmp_path), **{part: str(tiny.folder)})  # the pipeline that has it is enough
    assert source_of("concat", settings=elsewhere).fingerprints() == source_of("concat").fingerprints()


def test_llava_in_a_file_needs_the_file_of_its_eyes() -> None:
    with pytest.raises(UserError, match=r"image encoder is not there .*model\.image_encoder, .*HunyuanVideo_repack"):
        all_of("concat", image_encoder="")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_the_other_text_encoder_is_refused(kind: str) -> None:
    other = tiny_hunyuan("concat" if kind == "t2v" else "t2v").folder / "text_encoder"
    with pytest.raises(UserError, match=r"is not a folder of a (LlamaModel|Llava).*model\.text_encoder"):
        all_of(kind, text_encoder=str(other))


# the published models


Make = Callable[[], dict[str, Tensor]]


@pytest.mark.parametrize(
    ("part", "make"),
    [
        (VAE, lambda: published_vae()),
        (LLAMA, lambda: published_llama()),
        (LLAVA, lambda: published_llava()),
        (IMAGE_ENCODER, lambda: native_llama(llava())["image_encoder"]),
        (CLIP, lambda: published_clip()),
    ],
    ids=["vae", "llama", "llava", "image", "clip"],
)
def test_the_sizes_told_are_those_of_the_published_configs(part: Any, make: Make) -> None:
    """And the names and shapes of a published model tell its config."""
    numbers = sum(value.numel() for value in make().values())
    assert part.gigabytes == pytest.approx(2e-9 * numbers, rel=0.05)


def sizes_in(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def published_vae() -> dict[str, Tensor]:
    from diffusers import AutoencoderKLHunyuanVideo

    config = bundled_config("hunyuan-video-vae")
    defaults: Any = AutoencoderKLHunyuanVideo(block_out_channels=(32, 32, 32, 32)).config
    assert {**config, "block_out_channels": (32,) * 4} == {
        key: list(value) if key.endswith("types") else value
        for key, value in defaults.items() if not key.startswith("_")
    }  # fmt: skip
    native = native_vae(hollow(lambda: AutoencoderKLHunyuanVideo.from_config(config)))
    assert hunyuan_vae.vae_config(sizes_in(native)) == config
    return native


@functools.cache
def llava() -> nn.Module:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(**bundled_config("llava-llama-3-8b"))
    assert config.text_config.rope_parameters["rope_theta"] == 500000.0
    return hollow(lambda: LlavaForConditionalGeneration(config))


def published_llava() -> dict[str, Tensor]:
    return llava().state_dict()


def published_llama() -> dict[str, Tensor]:
    parts = native_llama(llava())
    names = hunyuan_text.llama_names(parts["text_encoder"])
    sizes = hunyuan_text.llama_sizes({name: list(parts["text_encoder"][key].shape) for name, key in names.items()})
    config = bundled_config("llava-llama-3-8b")
    assert sizes == config["text_config"]
    image = {name.removeprefix("vision_model."): value for name, value in parts["image_encoder"].items()}
    assert vision_sizes(sizes_in(image), "llava-llama-3-8b", "") == config["vision_config"]
    return {name: parts["text_encoder"][key] for name, key in names.items()}


def published_clip() -> dict[str, Tensor]:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = bundled_config("clip-text-l")
    state = native_clip(hollow(lambda: CLIPTextModel(CLIPTextConfig(**config))))
    bare = {name.removeprefix("text_model."): value for name, value in state.items()}
    assert clip_text.clip_sizes(sizes_in(bare)) == config
    return state
