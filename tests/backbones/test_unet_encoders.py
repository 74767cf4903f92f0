"""The encoders of a tiny AnimateDiff pipeline of the real classes, against diffusers' own pipeline."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from w2svd_core.backbones import backbone
from w2svd_core.condition import Condition
from w2svd_core.errors import UserError
from w2svd_core.generation import Way, generate
from w2svd_core.lora_files import pairs_from_peft, write_lora
from w2svd_core.randomness import noise_of_seeds
from w2svd_core.roles import SharedModel
from w2svd_core.settings import Model

PROMPTS = ["a red hat", "someone nods and talks for a very long time indeed, " * 9, ""]
LETTERS = "abcdefghijklmnopqrstuvwxyz,."


def new_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=20)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder, and the pipeline that was saved there."""
    from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("animatediff")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextConfig(
            vocab_size=60, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=20, bos_token_id=56, eos_token_id=57, pad_token_id=57,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32, attention_head_dim=2, norm_num_groups=4,
        )  # fmt: skip
        adapter = MotionAdapter(
            block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2,
            motion_norm_num_groups=4,
        )  # fmt: skip
        for parameter in adapter.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        vae = AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
        )  # fmt: skip
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
        made = AnimateDiffPipeline(
            vae, CLIPTextModel(text), new_tokenizer(), unet, adapter, DDIMScheduler(**betas, clip_sample=False)
        )
    for part in ("vae", "text_encoder", "tokenizer", "motion_adapter", "scheduler"):
        getattr(made, part, adapter).save_pretrained(folder / part)
    unet.save_pretrained(folder / "unet")
    made.set_progress_bar_config(disable=True)
    return folder, made


def settings(folder: Path, **changes: str) -> Model:
    return Model(
        **{"family": "animatediff", "path": str(folder), "encoders": "own", "text_precision": "fp32"} | changes
    )


def test_prompts_and_frames_are_encoded_as_diffusers_does(pipeline: tuple[Path, Any]) -> None:
    folder, theirs = pipeline
    source = backbone("animatediff").encoder_source(settings(folder), torch.device("cpu"))
    assert (source.width, source.starts, source.geometry.channels) == (32, False, 4)
    prompts, codec = source.load_prompts(), source.load_codec()
    expected, _ = theirs.encode_prompt(PROMPTS, torch.device("cpu"), 1, False)
    torch.testing.assert_close(prompts.encode(PROMPTS).fields["text"], expected, atol=1e-5, rtol=1e-5)
    latents = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    video = codec.decode(latents)
    torch.testing.assert_close(video, theirs.decode_latents(latents).clamp(-1, 1), atol=1e-5, rtol=1e-5)
    frame = video[:1, :, 1]
    alone = theirs.vae.encode(frame).latent_dist.mode() * theirs.vae.config.scaling_factor
    torch.testing.assert_close(codec.encode(video)[:1, :, 1], alone, atol=1e-5, rtol=1e-4)


def test_prints_change_with_what_they_stand_for(pipeline: tuple[Path, Any], tmp_path: Path) -> None:
    folder, theirs = pipeline
    family = backbone("animatediff")
    own = family.encoder_source(settings(folder), torch.device("cpu")).fingerprints()
    theirs.vae.half().save_pretrained(tmp_path / "vae")
    theirs.vae.float()
    other = family.encoder_source(settings(folder, vae=str(tmp_path / "vae")), torch.device("cpu")).fingerprints()
    assert own["text"] == other["text"] and own["codec"] != other["codec"] and own["start"] == ""
    with pytest.raises(UserError, match=r"model\.vae"):
        family.encoder_source(settings(folder, vae="nowhere"), torch.device("cpu")).load_codec()
    with pytest.raises(UserError, match="AutoencoderKL"):
        family.encoder_source(settings(folder, vae=str(folder / "unet")), torch.device("cpu")).load_codec()


def test_a_clip_is_the_one_that_diffusers_pipeline_makes(pipeline: tuple[Path, Any]) -> None:
    """All of it: prompt, AnimateDiff put together from UNet and adapter, 5 guided DDIM steps, latents and pixels."""
    folder, theirs = pipeline
    family = backbone("animatediff")
    source = family.encoder_source(settings(folder), torch.device("cpu"))
    prompts = source.load_prompts()
    model = SharedModel(family, family.load(folder, torch.float32).eval(), critic_rank=0, student_rank=None)
    family.check_fit(model.base, source.geometry, source.width)
    theirs.scheduler.set_timesteps(5)
    sigmas = (*family.timesteps.levels[theirs.scheduler.timesteps].tolist(), 0.0)  # type: ignore[attr-defined]
    way, shape = Way("teacher", sigmas, "euler", 3.0), (4, 3, 4, 4)
    found = generate(model, way, prompts.encode(PROMPTS[:1]), prompts.encode([""]), shape, [7])
    with torch.no_grad():
        given = {"num_frames": 3, "height": 8, "width": 8, "num_inference_steps": 5, "guidance_scale": 3.0}
        latents = noise_of_seeds(shape, [7], 0)
        expected = theirs(PROMPTS[0], latents=latents, output_type="latent", **given).frames
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_diffusers_pipeline_loads_a_students_file(pipeline: tuple[Path, Any], tmp_path: Path) -> None:
    """The same numbers as peft's own, from the file that a run leaves for diffusers."""
    family = backbone("animatediff")
    model = SharedModel(family, family.load(pipeline[0], torch.float32), critic_rank=0, student_rank=3)
    for name, parameter in model.base.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    pairs = pairs_from_peft(model.base, "generator")
    write_lora(tmp_path / "lora.safetensors", pairs, None, format="diffusers", key_map=family.keys)
    theirs = copy.copy(pipeline[1])
    theirs.unet = copy.deepcopy(pipeline[1].unet)
    theirs.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    rng = torch.Generator().manual_seed(2)
    x_t, text = torch.randn(1, 4, 3, 4, 4, generator=rng), torch.randn(1, 5, 32, generator=rng)
    with torch.no_grad():
        expected, plain = (
            one.unet(x_t, 500, encoder_hidden_states=text.repeat_interleave(3, 0)).sample
            for one in (theirs, pipeline[1])
        )
        found = model.predict("generator", x_t, family.timesteps.levels[500], Condition({"text": text}))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, plain, atol=1e-3)
