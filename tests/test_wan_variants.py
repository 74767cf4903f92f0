"""What is Wan's alone among its kinds: which one a file is, and what it is asked. Else `test_kinds`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kind import with_roles
from safetensors.torch import save_file
from torch import Tensor, nn
from wan_kinds import CHANGES, TELLING, by_hand, condition_of, lora_pipeline, new_wan, points_of

from w2svd_core import lora_files
from w2svd_core.backbones import backbone, wan_keys, wan_variants
from w2svd_core.backbones.base import Architecture
from w2svd_core.condition import Condition
from w2svd_core.errors import UserError
from w2svd_core.geometry import LatentGeometry

WAN = backbone("wan")
SIGMA = torch.tensor([0.9, 0.35])


def wide_wan(kind: str) -> nn.Module:
    """With one head of Wan's own width, so that a file says what model it is."""
    return new_wan(kind, **TELLING[kind])


# ---- recognition


def real(variant: wan_variants.Variant, **changes: Any) -> nn.Module:
    """A model of full size, without weights."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        found: nn.Module = WanTransformer3DModel(**dict(wan_variants.published_config(variant)) | changes)
    return found


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    """As they are found in a native file with ComfyUI's prefix."""
    native = wan_keys.to_native(model.state_dict(), prefix="model.diffusion_model.")
    return {name: list(native[key].shape) for name, key in wan_keys.diffusers_names(native).items()}


@pytest.mark.parametrize(
    ("variant", "name", "needs", "latents"),
    [
        (0, "Wan 2.1 T2V 1.3B", ("text",), LatentGeometry(16, 8, 4, 2)),
        (1, "Wan 2.1 T2V 14B (or one expert of Wan 2.2 T2V A14B: its tensors have the same shapes)", ("text",),
         LatentGeometry(16, 8, 4, 2)),
        (2, "Wan 2.1 I2V 14B", ("text", "start", "image"), LatentGeometry(16, 8, 4, 2)),
        (3, "Wan 2.2 TI2V 5B", ("text",), LatentGeometry(48, 16, 4, 2)),
    ],
)  # fmt: skip
def test_a_published_model_is_known_by_its_shapes(
    variant: int, name: str, needs: tuple[str, ...], latents: LatentGeometry
) -> None:
    published = wan_variants.VARIANTS[variant]
    model = real(published)
    assert wan_variants.inferred_config(shapes_of(model), "x") == wan_variants.published_config(published)
    facts = WAN.facts(model)
    assert (facts.name, facts.needs, facts.repository) == (name, needs, published.repository)
    assert facts.gigabytes == pytest.approx(published.gigabytes, abs=0.05)
    assert WAN.latents(model) == latents


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_dim": None, "added_kv_proj_dim": None}, "one expert of Wan 2.2 I2V A14B, whose two experts are not"),
        ({"pos_embed_seq_len": 514}, "Wan FLF2V"),
        ({"in_channels": 52}, "takes 52 channels and gives 16"),
    ],
)
def test_a_model_that_is_not_supported_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    config = wan_variants.inferred_config(shapes_of(real(wan_variants.VARIANTS[2], **changes)), "x.safetensors")
    with pytest.raises(UserError, match=f"^x.safetensors .*{words}.*Wan 2.1 T2V 1.3B"):
        wan_variants.refuse_unsupported(config, "x.safetensors")


def test_vace_and_two_experts_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Wan VACE"):
        wan_variants.inferred_config({"vace_blocks.0.proj_in.weight": [1, 1]}, "x")
    WAN.save_folder(new_wan(), tmp_path / "transformer", torch.float32)
    (tmp_path / "transformer_2").mkdir()
    with pytest.raises(UserError, match=r"Wan 2\.2 A14B, whose two experts are not supported"):
        WAN.load(tmp_path, torch.float32)


def test_a_missing_model_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is not there.*Wan-AI/Wan2.1-T2V-1.3B-Diffusers \(.*2.8 GB"):
        WAN.load(tmp_path / "nothing", torch.float32)


# ---- files


def broken(change: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file as people have it that can't be read."""
    name = "blocks.0.self_attn.q.weight"
    if change == "scaled":
        return state | {"scaled_fp8": torch.zeros(2), "blocks.0.self_attn.q.scale_weight": torch.ones(1)}
    if change == "int8":
        return state | {name: state[name].to(torch.int8)}
    if change == "cut":
        return {key: value for key, value in state.items() if key != name}
    if change == "bare":
        return {key: value for key, value in state.items() if key != "head.head.weight"}
    return state | {name: state[name][:, :64].clone()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("scaled", r"scaled weights \(key .*scale.*\).*use the bf16, fp16 or plain fp8 file"),
        ("int8", "quantised weights .*in I8.*use the bf16"),
        ("cut", "does not hold the Wan model"),
        ("bare", "has no whole proj_out.weight"),
        ("shape", "does not hold the Wan model"),
    ],
)
def test_a_file_that_can_not_be_read_is_one_sentence(change: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "wan.safetensors"
    save_file(broken(change, wan_keys.to_native(wide_wan("t2v").state_dict())), path)
    with pytest.raises(UserError, match=f"^{path}.*{words}"):
        WAN.load(path, torch.float32)


# ---- a call


def test_text_to_video_of_ti2v_has_one_time_for_all_tokens() -> None:
    model, x_t = new_wan("ti2v"), points_of("ti2v")
    text = Condition({"text": condition_of("ti2v", 2).fields["text"]})
    with torch.no_grad():
        found = WAN.predict(model, x_t, SIGMA, text)
        times = (1000 * SIGMA)[:, None].expand(2, 12)
        expected = model(x_t, timestep=times, encoder_hidden_states=text.fields["text"], return_dict=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert WAN.hold(x_t, text) is x_t and WAN.free(text, x_t) is None


@pytest.mark.parametrize(
    ("model", "condition", "words"),
    [
        ("i2v", "t2v", "image-to-video .* needs start and image of each clip, but the clips were prepared with text;"),
        ("t2v", "i2v", "text-to-video .* takes no start and image, but"),
        ("ti2v", "i2v", "takes no image"),
        ("t2v", "ti2v", "takes no start"),
    ],
)
def test_a_condition_of_another_kind_is_one_sentence(model: str, condition: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        WAN.predict(new_wan(model), points_of(model), SIGMA, condition_of(condition, 2))


@pytest.mark.parametrize(
    ("field", "cut", "words"),
    [
        ("image", lambda v: v[..., :4], "image embeddings 20 wide, the image encoder makes them 4 wide"),
        ("start", lambda v: v[:, :4], "first frame of 16 channels, the clips were prepared with 4"),
        ("text", lambda v: v.repeat(1, 103, 1), "at most 512 tokens, these have 515"),
    ],
)
def test_a_field_of_another_size_is_one_sentence(field: str, cut: Callable[[Tensor], Tensor], words: str) -> None:
    fields = dict(condition_of("i2v", 2).fields)
    fields[field] = cut(fields[field])
    with pytest.raises(UserError, match=words):
        WAN.predict(new_wan("i2v"), points_of("i2v"), SIGMA, Condition(fields))


def test_a_new_model_with_a_first_frame_needs_no_image_encoder() -> None:
    sizes = Architecture(heads=2, head_dim=12, ffn_dim=32, layers=2, text_dim=16)
    model = WAN.build(Architecture(**vars(sizes) | {"first_frame": True})).eval()
    assert WAN.facts(model).needs == ("text", "start") and WAN.latents(model) == WAN.latents(WAN.build(sizes))
    fields = condition_of("i2v", 2).fields
    condition = Condition({name: fields[name] for name in ("text", "start")})
    other = Condition({**condition.fields, "start": -condition.fields["start"]})
    with torch.no_grad():
        found, changed = (WAN.predict(model, points_of("i2v"), SIGMA, c) for c in (condition, other))
    assert found.shape == points_of("i2v").shape and not torch.allclose(found, changed)


@pytest.mark.parametrize("kind", list(CHANGES))
def test_base_and_lora_in_native_files_give_the_trained_output_in_diffusers(kind: str, tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    model, x_t, condition = with_roles(wide_wan(kind)), points_of(kind), condition_of(kind, 2)
    (tmp_path / "config").mkdir()
    model.base.save_config(tmp_path / "config")  # type: ignore[operator]
    base = {f"model.diffusion_model.{n}": w for n, w in wan_keys.to_native(model.base_state()).items()}
    save_file(base, tmp_path / "base.safetensors")
    pairs = lora_files.pairs_from_peft(model.base, "generator")
    assert any("add_k_proj" in name for name in pairs) == (kind == "i2v")
    lora_files.write_lora(tmp_path / "lora.safetensors", pairs, None, format="native", key_map=wan_keys)

    read = WanTransformer3DModel.from_single_file(tmp_path / "base.safetensors", config=str(tmp_path / "config"))
    pipeline = lora_pipeline(kind, read)
    pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    with torch.no_grad():
        found = by_hand(read, x_t, SIGMA, condition)
        torch.testing.assert_close(found, model.predict("generator", x_t, SIGMA, condition), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, model.predict("teacher", x_t, SIGMA, condition), atol=1e-2)


@pytest.mark.parametrize("name", ["wan2.2_t2v_high_noise_14B_fp16.safetensors", "Wan_Low_Noise.safetensors"])
def test_a_file_that_is_named_as_one_expert_is_told(name: str) -> None:
    (line,) = WAN.doubts(f"models/{name}")
    assert line.startswith(f"{name} is named as one expert of Wan 2.2 A14B") and "Wan 2.2 TI2V 5B" in line
    assert not WAN.doubts("models/wan.safetensors") and not backbone("hunyuan_video").doubts(name)
