"""A tiny HunyuanVideo from "Load Diffusion Model" through Train: headless numbers, and a LoRA that core loads.

In the graph its latents come from the portrait VAE (core knows HunyuanVideo's in its full size alone), its prompts from
a node of the tests: core's text encoders for it are of one size, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import run_prompt
from graphs import SETTINGS, SIZE, folder, node, steps, student
from host import Server, running
from hunyuan_kinds import HUNYUAN
from kind import program_of
from native_tiny import Vae, latent, loaded, same_rounds, small_recipe
from test_native_hunyuan import SIZES
from torch import Tensor, nn

from w2svd_core.condition import Condition
from w2svd_core.data.latents import LatentSet
from w2svd_core.files import read_safetensors, write_safetensors
from w2svd_core.lora_files import LoraMetadata
from w2svd_core.run import RunFolder

T2V = HUNYUAN[0]
TEXT, POOLED = 16, SIZES["pooled_projection_dim"]
LENGTHS = (5, 3, 5, 4, 2)  # tokens of prompts; the last is the empty one
ENCODER = '''
import folder_paths
from safetensors.torch import load_file


class Encoded:
    """Prompts that a test has encoded."""

    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    OUTPUT_IS_LIST = (True, False)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": ("STRING", {"default": ""})}}

    def load(self, file):
        held = load_file(folder_paths.get_input_directory() + "/" + file)
        rows = [[[held[f"text{i}"][None], {"pooled_output": p[None]}]] for i, p in enumerate(held["pooled"])]
        return rows[:-1], rows[-1]


NODE_CLASS_MAPPINGS = {"TestEncoded": Encoded}
'''


def new_model() -> nn.Module:
    """In the sizes that ComfyUI takes for granted."""
    return T2V.new(**SIZES)


def prompts() -> dict[str, Tensor]:
    """Embeddings `text0` ... of prompts of several lengths, as core's text encoder makes them, and `pooled`."""
    rng = torch.Generator().manual_seed(5)
    texts = {f"text{i}": torch.randn(length, TEXT, generator=rng) for i, length in enumerate(LENGTHS)}
    return texts | {"pooled": torch.randn(len(LENGTHS), POOLED, generator=rng)}


def condition_of(fields: dict[str, Tensor]) -> Condition:
    """diffusers' condition of them, which tells filler by a mask."""
    text, mask = torch.zeros(len(LENGTHS), max(LENGTHS), TEXT), torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, length in enumerate(LENGTHS):
        text[row, :length], mask[row, :length] = fields[f"text{row}"], 1.0
    return Condition({"text": text, "text_mask": mask, "pooled": fields["pooled"]})


def conditioning(fields: dict[str, Tensor]) -> list[Any]:
    """Each of them as a CONDITIONING."""
    rows = enumerate(fields["pooled"])
    with torch.inference_mode():
        return [[[fields[f"text{row}"][None].clone(), {"pooled_output": pooled[None].clone()}]] for row, pooled in rows]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "flow_matching"},
        {"matching.batched_scores": False},
        {"embedded.real": 3.0, "embedded.fake": 2.0, "embedded.student": 4.0},
    ],
)
def test_rounds_of_training_have_the_losses_of_headless(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A native layer has one adapter where diffusers' q, k and v have three, so that gradients are others."""
    from w2svd_core.backbones.comfy import NativeSource, native_data, native_job

    model, fields = new_model(), prompts()
    latents = torch.randn(4, 16, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    write_safetensors(tmp_path / "model.safetensors", T2V.backbone.native_state(model))
    patcher = loaded(tmp_path / "model.safetensors")
    whole, names = condition_of(fields), ("a", "b", "c", "d")
    headless = small_recipe(**changes, **{"model.family": T2V.family})
    expected = program_of(headless, model, LatentSet(latents, whole[:4], whole[4:], names))
    *rows, null = conditioning(fields)
    data = native_data(patcher, [latent(patcher, latents)], rows, null, names)
    with native_job(patcher, small_recipe(**changes), data, NativeSource(patcher, Vae())) as job:
        same_rounds(job.program, expected, leaving="gradient_norm")


@pytest.fixture(scope="module")
def server(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI with a tiny HunyuanVideo in its folder, and with encoded prompts."""
    home = tmp_path_factory.mktemp("hunyuan")
    pack = home / "custom_nodes" / "test_encoded" / "__init__.py"
    pack.parent.mkdir(parents=True)
    pack.write_text(ENCODER)
    for name in ("models/diffusion_models", "models/loras", "input"):
        (home / name).mkdir(parents=True)
    state = T2V.backbone.native_state(new_model())
    write_safetensors(home / "models" / "diffusion_models" / "tiny_hunyuan.safetensors", state)
    write_safetensors(home / "input" / "prompts.safetensors", prompts())
    with running(checkout, home) as found:
        yield found


def sampled(name: str, model: list[Any]) -> dict[str, Any]:
    """Two steps by core's nodes, saved."""
    return {
        f"{name}_guider": node("BasicGuider", model=model, conditioning=["3", 1]),
        f"{name}_made": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=[f"{name}_guider", 0], sampler=["euler", 0],
            sigmas=["sigmas", 0], latent_image=["size", 0],
        ),
        f"{name}_saved": node("SaveLatent", samples=[f"{name}_made", 0], filename_prefix=f"hunyuan/{name}"),
    }  # fmt: skip


def common() -> dict[str, Any]:
    return {
        "1": node("UNETLoader", unet_name="tiny_hunyuan.safetensors", weight_dtype="default"),
        "3": node("TestEncoded", file="prompts.safetensors"),
        "size": node("W2SVD_PortraitLatent", data_frames=17, data_height=32, data_width=32, batch_size=1),
    }


def training() -> dict[str, Any]:
    """Two rounds on prompts alone."""
    return common() | {
        "2": node("W2SVD_PortraitModel"),
        "5": node(
            "W2SVD_DatasetFromConditioning", conditioning=["3", 0], negative=["3", 1], size=["size", 0], data_fps=8.0
        ),
        "6": node("W2SVD_DistillSettings", **SETTINGS | {"train_steps": 2, "train_batch": 2}),
        "7": node("W2SVD_Train", model=["1", 0], vae=["2", 1], dataset=["5", 0], settings=["6", 0], name="hunyuan"),
        "8": node("PreviewImage", images=["7", 3]),
    }


def embedded(run: Path) -> float | None:
    """The embedded guidance in the header of the student's file."""
    path = run / "student" / "student_comfyui.safetensors"
    about = LoraMetadata.from_strings(read_safetensors(path)[1], path)
    assert about is not None
    return about.default.embedded_guidance


def test_roles_are_told_guidances_of_their_own(server: Server) -> None:
    own = {"teacher": 5.0, "real": 4.0, "fake": 3.0, "student": 2.0}
    graph = training()
    graph["guidance"] = node(
        "W2SVD_EmbeddedGuidance", settings=["6", 0], **{f"embedded_{role}": value for role, value in own.items()}
    )
    graph["7"]["inputs"] |= {"settings": ["guidance", 0], "name": "hunyuan_told"}
    done = run_prompt(server.url, graph, timeout=300)
    assert done.status == "success", (done.message, done.error, done.node_errors)
    run = folder(server, "hunyuan_told")
    recipe = RunFolder.open(run).recipe()
    assert {role: getattr(recipe.embedded, role) for role in own} == own and recipe.train.steps == 2
    assert embedded(run) == 2.0


def test_it_distils_in_the_graph_and_core_loads_the_lora_whole(server: Server) -> None:
    done = run_prompt(server.url, training(), timeout=300)
    assert done.status == "success", (done.message, done.error, done.node_errors)
    run = folder(server, "hunyuan")
    tensors = student(run)
    assert embedded(run) == 6.0  # ComfyUI's own, where the CONDITIONING says nothing
    assert steps(run) == [1, 2, 3] and SIZE["data_frames"] == 17
    assert all(t.abs().max() > 0 for name, t in tensors.items() if name.endswith("lora_up.weight"))
    assert any("double_blocks.0.img_attn" in name for name in tensors)
    theirs = read_safetensors(run / "student" / "student_diffusers.safetensors")[0]
    layers = {name.removeprefix("transformer.").rpartition(".lora_")[0] for name in theirs}
    assert layers <= {name for name, _ in new_model().named_modules()} and "transformer_blocks.0.attn.to_q" in layers
    report = (run / "report.md").read_text(encoding="utf-8")
    assert "`FluxGuidance` on the prompt: 6," in report
    write_safetensors(server.home / "models" / "loras" / "hunyuan.safetensors", tensors)
    told = len(server.logged())
    asked = common() | {
        "noise": node("RandomNoise", noise_seed=3),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node(
            "W2SVD_Sigmas", source="list", lora="none", steps=2, shift=5.0, sigmas="1, 0.8, 0", boundary=0.5
        ),
        "lora": node("LoraLoaderModelOnly", model=["1", 0], lora_name="hunyuan.safetensors", strength_model=1.0),
        **sampled("plain", ["1", 0]),
        **sampled("with", ["lora", 0]),
    }
    assert run_prompt(server.url, asked, timeout=300).status == "success"
    assert "lora key not loaded" not in server.logged()[told:]
    plain, changed = (
        read_safetensors(next((server.home / "output" / "hunyuan").glob(f"{name}_*.latent")))[0]["latent_tensor"]
        for name in ("plain", "with")
    )
    assert plain.isfinite().all() and not torch.allclose(plain, changed)
