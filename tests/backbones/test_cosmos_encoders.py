"""Cosmos' encoders against diffusers' own pipeline, and its sampler on the path of the published solver."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kind import Asked
from safetensors.torch import load_file, save_file
from tiny_cosmos import RAW, SIZE, TEXT, new_text_encoder, published_scheduler, tiny_cosmos
from tiny_wan import FRAMES, PROMPTS, picture
from torch import Tensor

from w2svd_core.backbones import backbone
from w2svd_core.backbones.cosmos_loading import load_projection
from w2svd_core.backbones.cosmos_source import CosmosSource
from w2svd_core.backbones.cosmos_text import TOKENS, CosmosReason
from w2svd_core.condition import Condition
from w2svd_core.data.codec import to_signed
from w2svd_core.errors import UserError
from w2svd_core.generation import Way, predictor
from w2svd_core.randomness import noise_of_seeds
from w2svd_core.roles import SharedModel

COSMOS = backbone("cosmos")
CPU = torch.device("cpu")
STEPS, GUIDANCE = 5, 8.0


def source_of(kind: str = "i2v", **changes: Any) -> CosmosSource:
    settings = tiny_cosmos(kind).model(**{"text_precision": "fp32", **changes})
    found = COSMOS.encoder_source(settings, CPU)
    assert isinstance(found, CosmosSource)
    return found


@pytest.fixture(scope="module")
def prompts() -> CosmosReason:
    return source_of().load_prompts()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The pipeline's folder, to be changed."""
    return Path(shutil.copytree(tiny_cosmos().folder, tmp_path / "pipeline"))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# ---- prompts


def test_prompts_are_the_pipelines_projected_by_the_model(prompts: CosmosReason) -> None:
    pipe, raw = tiny_cosmos().pipeline(), CosmosReason(new_text_encoder(), prompts.tokenizer, None)
    long = "a man with red hair talks " * 100
    asked = [*PROMPTS, long]
    expected, negative = pipe.encode_prompt(asked, [prompts.negative_prompt] * len(asked), device=CPU)
    assert expected.shape == (4, TOKENS, RAW) and (raw.width, prompts.width) == (RAW, TEXT)
    close(raw.encode(asked).fields["text"], expected)
    found = prompts.encode(asked).fields["text"]
    assert found.shape == (4, TOKENS, TEXT) and found.dtype == torch.float32
    with torch.no_grad():
        close(found, pipe.transformer.crossattn_proj(expected))
        close(prompts.null().fields["text"], pipe.transformer.crossattn_proj(negative[:1]))
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    assert not torch.allclose(found[0, -1], found[3, -1], atol=1e-2)  # padding is read, too
    assert prompts.encode([]).fields["text"].shape == (0, TOKENS, TEXT)


def test_the_null_is_what_the_pipeline_says_when_nobody_asks(prompts: CosmosReason) -> None:
    pipe = tiny_cosmos().pipeline()
    _, negative = pipe.encode_prompt(["a man talks"], device=CPU)
    with torch.no_grad():
        close(prompts.null().fields["text"], pipe.transformer.crossattn_proj(negative))


def test_the_projection_alone_is_the_models(prompts: CosmosReason) -> None:
    tiny = tiny_cosmos()
    weights = COSMOS.load(tiny.folder, torch.float32).state_dict()
    for place in (tiny.folder, tiny.folder / "transformer", tiny.files["transformer"]):
        found = load_projection(place, torch.float32)
        assert found is not None
        assert {name: w.tolist() for name, w in found.state_dict().items()} == {
            name: weights[f"crossattn_proj.{name}"].tolist() for name in ("0.weight", "0.bias")
        }


def test_half_precision_is_close(prompts: CosmosReason) -> None:
    half = source_of(text_precision="bf16").load_prompts().encode(PROMPTS).fields["text"]
    assert half.dtype == torch.bfloat16
    close(half.float(), prompts.encode(PROMPTS).fields["text"], 0.1)


def test_a_fingerprint_knows_the_projection_and_the_encoder(prompts: CosmosReason, copied: Path) -> None:
    before = source_of(path=str(copied)).fingerprints()
    assert source_of().load_prompts().fingerprint() == prompts.fingerprint()
    file = next((copied / "transformer").glob("*.safetensors"))
    save_file({name: 2 * w if "crossattn" in name else w for name, w in load_file(file).items()}, file)
    changed = source_of(path=str(copied))
    after = changed.fingerprints()
    assert before["text"] != after["text"] and before["codec"] == after["codec"]
    assert changed.load_prompts().fingerprint() != prompts.fingerprint()
    assert source_of("t2v").fingerprints()["start"] == "" != before["start"]


# ---- the first frame


def test_the_first_frame_is_what_the_pipeline_encodes() -> None:
    """The pipeline encodes the picture and then nothing; the VAE is causal, so that the picture alone is the same."""
    pipe, source, image = tiny_cosmos().pipeline(), source_of(), picture(*SIZE)
    codec = source.load_codec()
    start = source.load_start(codec)
    assert start is not None and source_of("t2v").load_start(codec) is None
    pixels = to_signed(np.array(image)[None, None])
    padded = torch.cat([(pixels[:, :, :1] + 1) / 2, torch.zeros(1, 3, FRAMES - 1, *SIZE)], dim=2)
    video = pipe.video_processor.preprocess_video(padded.transpose(1, 2), *SIZE)
    _, latents, mask, given = pipe.prepare_latents(
        video=video, batch_size=1, height=SIZE[0], width=SIZE[1], num_frames_in=1, num_frames_out=FRAMES,
        dtype=torch.float32, device=CPU,
    )  # fmt: skip
    found = start.encode(pixels, FRAMES, ["a man talks"])
    assert list(found) == ["first"] and found["first"].shape == (1, 16, 1, 2, 4)
    close(found["first"], latents[:, :, :1])
    assert mask[:, :, 0].all() and not mask[:, :, 1:].any() and given.flatten().tolist() == [1, 0, 0]


# ---- the sampler


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_the_guided_call_is_the_pipelines_on_the_published_solvers_path(kind: str) -> None:
    """UniPC over Karras' levels: at each of them the clean sample that the pipeline's output means is ours."""
    tiny = tiny_cosmos(kind)
    pipe, source, image = tiny.pipeline(), source_of(kind), kind == "i2v"
    pipe.scheduler = scheduler = published_scheduler()
    seen: list[tuple[float, Tensor, Tensor]] = []  # sigma, the pipeline's output and its x_t
    step = scheduler.step

    def watched(output: Tensor, time: Tensor, sample: Tensor, **options: Any) -> Any:
        seen.append((float(scheduler.sigmas[len(seen)]), output.clone(), sample.clone()))
        return step(output, time, sample, **options)

    scheduler.step = watched
    noise = noise_of_seeds((16, 3, 2, 4), (7, 8), 0)
    shown = picture(*SIZE) if image else None
    final = tiny.reference(pipe, Asked(PROMPTS[:2], source.negative_prompt, noise, FRAMES, STEPS, GUIDANCE, 6.0, shown))
    assert len(seen) == STEPS and seen[0][0] > 0.99 and all(a[0] > b[0] for a, b in pairwise(seen))

    prompts, codec = source.load_prompts(), source.load_codec()
    fields = dict(prompts.encode(PROMPTS[:2]).fields)
    start = source.load_start(codec)
    if start is not None:
        first = to_signed(np.array(shown)[None, None]).expand(2, -1, -1, -1, -1)
        fields |= start.encode(first, FRAMES, PROMPTS[:2])
    condition = Condition(fields)
    model = SharedModel(COSMOS, COSMOS.load(tiny.folder, torch.float32).eval(), critic_rank=0, student_rank=1)
    predict = predictor(model, Way("teacher", (1.0, 0.0), "euler", GUIDANCE), condition, prompts.null())
    for sigma, output, sample in seen:
        with torch.no_grad():
            found = predict(sample, sigma)
        expected = COSMOS.process.x0_from_output(sample, output, sigma)
        close(found[:, :, image:], expected[:, :, image:], 1e-4)
    if image:  # the pipeline's true velocity brings the given frame where we hold it
        close(COSMOS.hold(final, condition), final, 2e-2)


# ---- bad input


def test_a_text_encoder_of_another_size_is_one_sentence(prompts: CosmosReason) -> None:
    projection = torch.nn.Sequential(torch.nn.Linear(30, TEXT))
    with pytest.raises(UserError, match=r"takes 30 channels of a prompt's token, the text encoder makes 24"):
        CosmosReason(new_text_encoder(), prompts.tokenizer, projection)  # type: ignore[arg-type]


def test_a_tokenizer_without_its_chat_template_is_one_sentence(copied: Path) -> None:
    (copied / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"no chat template.*model\.tokenizer"):
        source_of(path=str(copied)).load_prompts()


def test_a_file_is_no_text_encoder(copied: Path) -> None:
    place = copied / "text_encoder" / "model.safetensors"
    with pytest.raises(UserError, match=r"is not a folder of a Qwen2_5_VLForConditionalGeneration"):
        source_of(text_encoder=str(place)).load_prompts()


@pytest.mark.parametrize(("part", "setting"), [("vae", "vae"), ("text_encoder", "text_encoder")])
def test_a_part_that_is_not_there_is_named_with_where_it_is_published(part: str, setting: str, copied: Path) -> None:
    shutil.rmtree(copied / part)
    with pytest.raises(UserError, match=rf"model\.{setting}.*nvidia/Cosmos-Predict2\.5-2B@diffusers/base/post-trained"):
        source_of(path=str(copied)).fingerprints()


def test_a_lora_of_the_projection_is_refused(tmp_path: Path) -> None:
    stem = "transformer.crossattn_proj.0"
    save_file({f"{stem}.lora_A.weight": torch.zeros(2, RAW), f"{stem}.lora_B.weight": torch.zeros(TEXT, 2)},
              tmp_path / "odd.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=r"odd\.safetensors changes crossattn_proj.*leaves it alone"):
        source_of(loras=(f"{tmp_path}/odd.safetensors@0.5",)).load_prompts()
    with pytest.raises(UserError, match="changes crossattn_proj"):  # clips that were prepared without it don't hide it
        source_of(loras=(f"{tmp_path}/odd.safetensors@0.5",)).fingerprints()


def test_a_model_without_its_projection_is_one_sentence(copied: Path) -> None:
    file = next((copied / "transformer").glob("*.safetensors"))
    save_file({name: w for name, w in load_file(file).items() if "crossattn" not in name}, file)
    with pytest.raises(UserError, match="lacks its crossattn_proj"):
        source_of(path=str(copied)).fingerprints()
