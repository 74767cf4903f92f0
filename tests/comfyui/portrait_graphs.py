"""The portrait teacher sampled by core's nodes, and the same without ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from drive import Run, run_prompt
from graphs import Nodes, node
from host import Server
from safetensors.torch import load_file
from torch import Tensor

from w2svd_core.asking import ask
from w2svd_core.assembly import bundled_encoders
from w2svd_core.backbones import backbone
from w2svd_core.config import load_recipe
from w2svd_core.generation import Way, generate
from w2svd_core.loading import Loaded, load_teacher
from w2svd_core.lora_algebra import Lora
from w2svd_core.lora_files import LoraPair

SIGMAS = (1.0, 0.857143, 0.666667, 0.4, 0.0)
PROMPT = "talking, red hair"
SEEDS = (7, 8)
NEAR = 1e-4
WAN = backbone("wan")


def new_pairs(model: torch.nn.Module, seed: int, rank: int = 4) -> dict[str, LoraPair]:
    """A LoRA of the teacher that changes what it draws; alpha is not its rank."""
    rng = torch.Generator().manual_seed(seed)
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    return {
        name: LoraPair(
            torch.randn(rank, layer.in_features, generator=rng) / layer.in_features**0.5,
            0.1 * torch.randn(layer.out_features, rank, generator=rng),
            2.0 * rank,
        )
        for name, layer in linears.items()
        if name.removesuffix(".base_layer").endswith(WAN.lora_targets)
    }


def new_teacher() -> Loaded:
    """The bundled teacher, headless."""
    return load_teacher(load_recipe("portraits", {}), bundled_encoders())


def headless(teacher: Loaded, way: Way, loras: Sequence[Lora] = ()) -> Tensor:
    """Normalised latents of the prompt and all seeds."""
    recipe = load_recipe("portraits", {})
    asked = ask(bundled_encoders(), recipe.data, [PROMPT] * len(SEEDS), None)
    with teacher.acting("teacher", loras):
        return generate(teacher.model, way, asked.condition(range(len(SEEDS))), asked.null, asked.shape, SEEDS)


def base() -> Nodes:
    return {
        "model": node("W2SVD_PortraitModel"),
        "words": node("W2SVD_PortraitPrompt", text=PROMPT),
        "empty": node("W2SVD_PortraitPrompt", text=""),
        "latent": node("W2SVD_PortraitLatent", data_frames=17, data_height=32, data_width=32, batch_size=len(SEEDS)),
        "noise": node("W2SVD_Noise", seed=SEEDS[0]),
        "sigmas": sigmas("list"),
        "euler": node("KSamplerSelect", sampler_name="euler"),
    }


def sigmas(source: str, lora: str = "none", steps: int = 4, shift: float = 5.0, boundary: float = 0.5) -> Nodes:
    text = ", ".join(map(str, SIGMAS))
    return node("W2SVD_Sigmas", source=source, lora=lora, steps=steps, shift=shift, sigmas=text, boundary=boundary)


def sampler(mode: str, eta: float = 0.5) -> Nodes:
    return node("W2SVD_Sampler", mode=mode, eta=eta, noise_scale=1.0)


def sampled(name: str, model: list[Any], way: list[Any], levels: list[Any], cfg: float = 1.0, **other: Any) -> Nodes:
    """Core's nodes from a model to a file of latents."""
    links = {"noise": ["noise", 0], "latent_image": ["latent", 0], **other}
    conditions = {"positive": ["words", 0], "negative": ["empty", 0]}
    return {
        f"{name}_guider": node("CFGGuider", model=model, cfg=cfg, **conditions),
        name: node("SamplerCustomAdvanced", guider=[f"{name}_guider", 0], sampler=way, sigmas=levels, **links),
        f"{name}_saved": node("SaveLatent", samples=[name, 0], filename_prefix=f"n1/{name}"),
    }


def run(comfy: Server, prompt: Nodes) -> Run:
    """Run a workflow that must succeed."""
    done = run_prompt(comfy.url, prompt, timeout=120)
    assert done.status == "success", (done.message, done.error, done.node_errors)
    return done


def saved(comfy: Server, name: str) -> Tensor:
    """The latents that a workflow saved last, normalised as Wan reads them."""
    found = max((comfy.home / "output" / "n1").glob(f"{name}_0*.latent"))
    return normal(load_file(found)["latent_tensor"])


def normal(latents: Tensor) -> Tensor:
    """What a native Wan makes of LATENT: the statistics of Wan 2.1's VAE, as diffusers has them, taken out."""
    from diffusers import AutoencoderKLWan

    config = {name: one.default for name, one in _parameters(AutoencoderKLWan).items()}
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return (latents.float() - mean) / std


def _parameters(cls: type) -> Any:
    import inspect

    return inspect.signature(inspect.unwrap(cls.__init__)).parameters


def apart(comfy: Server, name: str, wanted: Tensor) -> float:
    """The largest difference of saved latents from the headless ones."""
    return float((saved(comfy, name) - wanted).abs().max())
