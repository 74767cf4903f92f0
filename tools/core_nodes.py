"""The core nodes that the workflows use, as ComfyUI 0.3.64 and later have them: names, sockets, widgets.

`tests/comfyui/test_workflows.py` compares them with the running one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Socket:
    """An input or output that is linked."""

    name: str
    type: str
    optional: bool = False
    label: str = ""


@dataclass(frozen=True)
class Widget:
    """An input with a value.

    Attributes:
        control: the page puts a value after it that says what happens to it when a run is queued.
    """

    name: str
    type: str
    default: object
    control: bool = False
    multiline: bool = False
    label: str = ""


@dataclass(frozen=True)
class Kind:
    """A type of node.

    Attributes:
        preview: px that a picture or text takes below the widgets.
        growth: px that later versions of the node are higher.
        video: height over width of the video that the page puts below the widgets; 0 = none.
    """

    title: str
    sockets: tuple[Socket, ...]
    widgets: tuple[Widget, ...]
    outputs: tuple[Socket, ...]
    core: bool = True
    preview: int = 0
    growth: int = 0
    video: float = 0.0


def _kind(title: str, sockets: str, outputs: str, *widgets: Widget, growth: int = 0, video: float = 0.0) -> Kind:
    """Sockets as "model:MODEL ..." texts."""

    def read(text: str) -> tuple[Socket, ...]:
        return tuple(Socket(*part.split(":")) for part in text.split())

    return Kind(title, read(sockets), widgets, read(outputs), growth=growth, video=video)


CORE: dict[str, Kind] = {
    "UNETLoader": _kind(
        "Load Diffusion Model",
        "",
        "MODEL:MODEL",
        Widget("unet_name", "COMBO", ""),
        Widget("weight_dtype", "COMBO", "default"),
    ),
    "CLIPLoader": _kind(
        "Load CLIP",
        "",
        "CLIP:CLIP",
        Widget("clip_name", "COMBO", ""),
        Widget("type", "COMBO", "wan"),
        Widget("device", "COMBO", "default"),
    ),
    "DualCLIPLoader": _kind(
        "DualCLIPLoader",
        "",
        "CLIP:CLIP",
        Widget("clip_name1", "COMBO", ""),
        Widget("clip_name2", "COMBO", ""),
        Widget("type", "COMBO", "hunyuan_video"),
        Widget("device", "COMBO", "default"),
    ),
    "VAELoader": _kind("Load VAE", "", "VAE:VAE", Widget("vae_name", "COMBO", "")),
    "CLIPTextEncode": _kind(
        "CLIP Text Encode (Prompt)",
        "clip:CLIP",
        "CONDITIONING:CONDITIONING",
        Widget("text", "STRING", "", multiline=True),
    ),
    "EmptyHunyuanLatentVideo": _kind(
        "Empty Latent Video",
        "",
        "LATENT:LATENT",
        Widget("width", "INT", 832),
        Widget("height", "INT", 480),
        Widget("length", "INT", 81),
        Widget("batch_size", "INT", 1),
    ),
    "RandomNoise": _kind("RandomNoise", "", "NOISE:NOISE", Widget("noise_seed", "INT", 0, control=True)),
    "DisableNoise": _kind("DisableNoise", "", "NOISE:NOISE"),
    "BasicGuider": _kind("BasicGuider", "model:MODEL conditioning:CONDITIONING", "GUIDER:GUIDER"),
    "CFGGuider": _kind(
        "CFGGuider",
        "model:MODEL positive:CONDITIONING negative:CONDITIONING",
        "GUIDER:GUIDER",
        Widget("cfg", "FLOAT", 5.0),
    ),
    "SamplerCustomAdvanced": _kind(
        "SamplerCustomAdvanced",
        "noise:NOISE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT",
        "output:LATENT denoised_output:LATENT",
    ),
    "KSamplerSelect": _kind("KSamplerSelect", "", "SAMPLER:SAMPLER", Widget("sampler_name", "COMBO", "euler")),
    "LoraLoaderModelOnly": _kind(
        "Load LoRA",
        "model:MODEL",
        "MODEL:MODEL",
        Widget("lora_name", "COMBO", ""),
        Widget("strength_model", "FLOAT", 1.0),
    ),
    "VAEDecode": _kind("VAE Decode", "samples:LATENT vae:VAE", "IMAGE:IMAGE"),
    "VAEEncode": _kind("VAE Encode", "pixels:IMAGE vae:VAE", "LATENT:LATENT"),
    "CreateVideo": _kind("Create Video", "images:IMAGE", "VIDEO:VIDEO", Widget("fps", "FLOAT", 16.0), growth=44),
    "SaveVideo": _kind(
        "Save Video",
        "video:VIDEO",
        "",
        Widget("filename_prefix", "STRING", "w2svd/clip"),
        Widget("format", "COMBO", "auto"),
        Widget("codec", "COMBO", "auto"),
        video=0.6,
    ),
}
