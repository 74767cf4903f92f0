"""What several workflows are put together from: Wan's files, loaders, a few-step sampler, a film at the end."""

from __future__ import annotations

from collections.abc import Mapping

from graph import Group, Node, Out

WAN_21 = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN_22 = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
HUNYUAN = "https://huggingface.co/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files"
PROMPT = "A woman with red hair talks to the camera and smiles, soft window light, shallow depth of field"


def file(base: str, folder: str, name: str) -> Mapping[str, str]:
    """A download, as `properties.models` has it."""
    return {"name": name, "url": f"{base}/{folder}/{name}", "directory": folder.rpartition("/")[2]}


WAN_SMALL = file(WAN_21, "diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors")
WAN_14B = file(WAN_21, "diffusion_models", "wan2.1_t2v_14B_fp16.safetensors")
WAN_HIGH = file(WAN_22, "diffusion_models", "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors")
WAN_LOW = file(WAN_22, "diffusion_models", "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors")
LORA_HIGH = file(WAN_22, "loras", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors")
LORA_LOW = file(WAN_22, "loras", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors")
LORA_SMALL = {
    "name": "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors",
    "url": "https://huggingface.co/Kijai/WanVideo_comfy/resolve/main/"
    "Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors",
    "directory": "loras",
}
HUNYUAN_VIDEO = file(HUNYUAN, "diffusion_models", "hunyuan_video_t2v_720p_bf16.safetensors")
HUNYUAN_VAE = file(HUNYUAN, "vae", "hunyuan_video_vae_bf16.safetensors")
CLIP_L = file(HUNYUAN, "text_encoders", "clip_l.safetensors")
LLAVA = file(HUNYUAN, "text_encoders", "llava_llama3_fp8_scaled.safetensors")
TEXT_ENCODER = file(WAN_21, "text_encoders", "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
VAE = file(WAN_21, "vae", "wan_2.1_vae.safetensors")


def diffusion_model(group: Group, about: Mapping[str, str], title: str = "") -> Out:
    """Load Diffusion Model."""
    return group.add("UNETLoader", title, (about,), 400, unet_name=about["name"]).out("MODEL")


def text_encoder(group: Group) -> Out:
    """Load CLIP."""
    return group.add("CLIPLoader", "", (TEXT_ENCODER,), 400, clip_name=TEXT_ENCODER["name"]).out("CLIP")


def two_text_encoders(group: Group) -> Out:
    """HunyuanVideo's."""
    names = {"clip_name1": CLIP_L["name"], "clip_name2": LLAVA["name"]}
    return group.add("DualCLIPLoader", "", (CLIP_L, LLAVA), 400, **names).out("CLIP")


def vae(group: Group, about: Mapping[str, str] = VAE) -> Out:
    """Load VAE."""
    return group.add("VAELoader", "", (about,), 400, vae_name=about["name"]).out("VAE")


def sampled(group: Group, model: Out, prompt: Out, noise: Out, sampler: Out, sigmas: Out, latent: Out) -> Node:
    """One pass without guidance, as few-step students are trained."""
    guider = group.add("BasicGuider", model=model, conditioning=prompt)
    return group.add(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=guider.out("GUIDER"),
        sampler=sampler,
        sigmas=sigmas,
        latent_image=latent,
    )


def guided(
    group: Group, model: Out, prompts: tuple[Out, Out], cfg: float, noise: Out, sigmas: Out, latent: Out
) -> Node:
    """The teacher's many guided steps."""
    guider = group.add("CFGGuider", model=model, positive=prompts[0], negative=prompts[1], cfg=cfg)
    euler = group.add("KSamplerSelect")
    return group.add(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=guider.out("GUIDER"),
        sampler=euler.out("SAMPLER"),
        sigmas=sigmas,
        latent_image=latent,
    )


def decoded(group: Group, sampler: Node, vae_: Out) -> Out:
    """VAE Decode."""
    return group.add("VAEDecode", samples=sampler.out("output"), vae=vae_).out("IMAGE")


def film(group: Group, images: Out, name: str, fps: float, shape: float = 0.0) -> None:
    """A video file in the output folder; `shape` is its height over its width, where that is not usual."""
    video = group.add("CreateVideo", images=images, fps=fps)
    group.add("SaveVideo", shape=shape, video=video.out("VIDEO"), filename_prefix=f"w2svd/{name}")
