"""The workflows that sample and distil Wan."""

from __future__ import annotations

import parts
from graph import Flow, Group, Kind, Node, Out, settings_of_recipe

SIZES = {"data_frames": 81, "data_height": 480, "data_width": 832, "data_fps": 16.0}
BY_NAME = (
    "**Cancel** saves, and Run goes on from there. The run folder in output/w2svd holds the recipe for "
    "python -m w2svd_core.train, so that a long run can go on without ComfyUI."
)
IN_MEMORY = (
    "**Cancel** saves, and Run goes on from there. The run folder in output/w2svd holds the recipe, checkpoints, "
    "samples and the student."
)


def few_step(kinds: dict[str, Kind]) -> Flow:
    """Wan 2.1 with a few-step LoRA."""
    flow = Flow("01_wan21_few_step", "Wan 2.1 in four steps", kinds)
    loading = flow.group(
        "1. Model and LoRA",
        "**Load Few-Step LoRA** takes native, diffusers, PEFT and kohya keys, shows which layers matched and refuses a "
        "file that matches nothing. It also reads the noise levels that the LoRA was trained for; a file of others "
        "that names none gets the usual four steps at shift 5.",
    )
    model = parts.diffusion_model(loading, parts.WAN_SMALL)
    clip, vae = parts.text_encoder(loading), parts.vae(loading)
    lora = loading.column().add(
        "W2SVD_LoadLoRA", models=(parts.LORA_SMALL,), width=420, model=model, lora=parts.LORA_SMALL["name"]
    )
    sampling = flow.group(
        "2. Four steps, no guidance",
        "Sigmas and sampler come from the LoRA, so there is no scheduler to choose and no step to count. "
        "A few-step student is sampled without guidance: one pass for each step.",
    )
    prompt = sampling.add("CLIPTextEncode", width=400, clip=clip, text=parts.PROMPT)
    latent = sampling.add("EmptyHunyuanLatentVideo", width=400)
    noise = sampling.add("RandomNoise", width=400, noise_seed=7)
    done = parts.sampled(
        sampling.column(),
        lora.out("model"),
        prompt.out("CONDITIONING"),
        noise.out("NOISE"),
        lora.out("sampler"),
        lora.out("sigmas"),
        latent.out("LATENT"),
    )
    images = parts.decoded(sampling, done, vae)
    ending = flow.group("3. The clip", "Saved into output/w2svd, and measured: few-step students lose motion first.")
    parts.film(ending, images, "wan21_few_step", 16.0)
    ending.column().add("W2SVD_Metrics", images=images)
    return flow


def high_low(kinds: dict[str, Kind]) -> Flow:
    """Wan 2.2 with its two models."""
    flow = Flow("02_wan22_high_low", "Wan 2.2: high and low noise", kinds)
    loading = flow.group(
        "1. Two models, two LoRAs",
        "Wan 2.2 has one model for high noise and one for low noise, and a LoRA for each.",
    )
    loras = []
    for name, base, lora in (("high", parts.WAN_HIGH, parts.LORA_HIGH), ("low", parts.WAN_LOW, parts.LORA_LOW)):
        model = parts.diffusion_model(loading, base, f"Load Diffusion Model ({name} noise)")
        loras.append(
            loading.add(
                "W2SVD_LoadLoRA",
                f"Load Few-Step LoRA ({name} noise)",
                (lora,),
                400,
                model=model,
                lora=lora["name"],
            )
        )
    clip, vae = parts.text_encoder(loading.column()), parts.vae(loading)
    levels = flow.group(
        "2. Noise levels, split by noise",
        "**Few-Step Sigmas** splits at the boundary sigma, not at a step number: at shift 5 four steps fall 2 + 2, at "
        "shift 8 they fall 3 + 1. The boundary is 0.875 for text to video, 0.9 for image to video.",
    )
    sigmas = levels.add("W2SVD_Sigmas", source="steps", steps=4, shift=5.0, boundary=0.875)
    sampler = levels.add("W2SVD_Sampler", mode="ode")
    prompt = levels.column().add("CLIPTextEncode", width=400, clip=clip, text=parts.PROMPT)
    latent = levels.add("EmptyHunyuanLatentVideo", width=400)
    noise = levels.add("RandomNoise", width=400, noise_seed=7)
    sampling = flow.group("3. High, then low", "The second sampler goes on where the first one ends and adds no noise.")
    first = parts.sampled(
        sampling,
        loras[0].out("model"),
        prompt.out("CONDITIONING"),
        noise.out("NOISE"),
        sampler.out("sampler"),
        sigmas.out("high"),
        latent.out("LATENT"),
    )
    quiet = sampling.column().add("DisableNoise")
    second = parts.sampled(
        sampling,
        loras[1].out("model"),
        prompt.out("CONDITIONING"),
        quiet.out("NOISE"),
        sampler.out("sampler"),
        sigmas.out("low"),
        first.out("output"),
    )
    images = parts.decoded(sampling.column(), second, vae)
    parts.film(sampling, images, "wan22_high_low", 16.0)
    return flow


def compare(kinds: dict[str, Kind]) -> Flow:
    """The same seed with 30 guided steps and with four, and the LoRA in another format."""
    flow = Flow("06_compare_and_convert", "Teacher against student", kinds)
    loading = flow.group(
        "1. Model, LoRA, prompt",
        "**Convert LoRA** writes the file with other keys or another rank into models/loras and says how far it is "
        "from the original.",
    )
    model = parts.diffusion_model(loading, parts.WAN_SMALL)
    clip, vae = parts.text_encoder(loading), parts.vae(loading)
    name = parts.LORA_SMALL["name"]
    lora = loading.column().add("W2SVD_LoadLoRA", models=(parts.LORA_SMALL,), width=400, model=model, lora=name)
    loading.add(
        "W2SVD_ConvertLoRA", models=(parts.LORA_SMALL,), width=400, lora=name, rank=16, name="w2svd/rank16",
        if_exists="replace",
    )  # fmt: skip
    prompt = loading.column().add("CLIPTextEncode", width=400, clip=clip, text=parts.PROMPT)
    empty = loading.add("CLIPTextEncode", "CLIP Text Encode (Negative)", width=400, clip=clip)
    latent = loading.add("EmptyHunyuanLatentVideo", width=400)
    noise = loading.add("RandomNoise", width=400, noise_seed=7)
    conditions = prompt.out("CONDITIONING"), empty.out("CONDITIONING")
    start, seed = latent.out("LATENT"), noise.out("NOISE")
    slow = flow.group("2. Teacher: 30 steps, guidance 5", "Sixty passes through the model.")
    sigmas = slow.add("W2SVD_Sigmas", source="steps", steps=30, shift=8.0)
    teacher = parts.guided(slow, model, conditions, 5.0, seed, sigmas.out("all"), start)
    fast = flow.group("3. Student: 4 steps", "Four passes.")
    student = parts.sampled(
        fast, lora.out("model"), conditions[0], seed, lora.out("sampler"), lora.out("sigmas"), start
    )
    ending = flow.group("4. Side by side", "Look at the video; read motion, saturation and sharpness beside it.")
    columns = [parts.decoded(ending, done, vae) for done in (teacher, student)]
    ending.add("W2SVD_Metrics", images=columns[1], reference=columns[0])
    beside = ending.column().add(
        "W2SVD_SideBySide", width=480, first=columns[0], second=columns[1], names="30 steps, 4 steps"
    )
    ending.add("SaveVideo", video=beside.out("video"), filename_prefix="w2svd/compare")
    return flow


def weak_weights(kinds: dict[str, Kind]) -> Flow:
    """One seed on the way from the teacher to the student."""
    flow = Flow("05_weak_weight_explorer", "From teacher to student", kinds)
    loading = flow.group(
        "1. Teacher, adapter, prompt",
        "Put a student's LoRA into models/loras and choose it in every Weak LoRA Apply. Weight 0 is the "
        "teacher itself; 0.25 is what a weak-to-strong distillation takes by default.",
    )
    model = parts.diffusion_model(loading, parts.WAN_SMALL)
    clip, vae = parts.text_encoder(loading), parts.vae(loading)
    prompt = loading.column().add("CLIPTextEncode", width=400, clip=clip, text=parts.PROMPT)
    empty = loading.add("CLIPTextEncode", "CLIP Text Encode (Negative)", width=400, clip=clip)
    latent = loading.add("EmptyHunyuanLatentVideo", width=400, length=33)
    noise = loading.column().add("RandomNoise", noise_seed=7)
    sigmas = loading.add("W2SVD_Sigmas", source="steps", steps=20, shift=8.0)
    conditions = prompt.out("CONDITIONING"), empty.out("CONDITIONING")
    columns, name = [], parts.LORA_SMALL["name"]
    weights = (0.0, 0.25, 0.5, 1.0)
    for weight in weights:
        group = flow.group(
            f"Weight {weight:g}", "The teacher." if weight == 0 else "The teacher, moved by the adapter."
        )
        weak = group.add(
            "W2SVD_WeakLoRA", models=(parts.LORA_SMALL,), width=360, model=model, lora=name, matching_alpha_weak=weight
        )
        done = parts.guided(
            group, weak.out("model"), conditions, 5.0, noise.out("NOISE"), sigmas.out("all"), latent.out("LATENT")
        )
        columns.append(parts.decoded(group, done, vae))
    ending = flow.group("Side by side", "One seed at four weights; the numbers compare weight 0.25 with the teacher.")
    beside = ending.add(
        "W2SVD_SideBySide",
        width=640,
        first=columns[0],
        second=columns[1],
        third=columns[2],
        fourth=columns[3],
        names=", ".join(f"{weight:g}" for weight in weights),
    )
    ending.column().add("W2SVD_Metrics", width=460, images=columns[1], reference=columns[0])
    ending.add("SaveVideo", video=beside.out("video"), filename_prefix="w2svd/weak_weights")
    return flow


def distil_clips(kinds: dict[str, Kind]) -> Flow:
    """Wan 1.3B from a folder of clips."""
    flow = Flow("04_distil_wan_from_clips", "Distil Wan 1.3B from clips", kinds)
    loading = flow.group(
        "1. Model and clips",
        "Put the model's diffusers folder (Wan2.1-T2V-1.3B-Diffusers) into models/diffusers, or choose single files, "
        "and videos with a .txt caption beside each into input/clips.",
    )
    model = _trained_model(loading)
    dataset = loading.add("W2SVD_DatasetFromFolder", width=420, folder="clips", **SIZES)
    _distilled(flow, model.out("model"), dataset.out("dataset"), "wan_clips", BY_NAME)
    return flow


def distil_prompts(kinds: dict[str, Kind]) -> Flow:
    """Wan 1.3B from prompts alone."""
    flow = Flow("04_distil_wan_from_prompts", "Distil Wan 1.3B from prompts", kinds)
    loading = flow.group(
        "1. Model and prompts",
        "No clips are needed: the student walks its own path from noise, and the teacher judges it. Some thousand "
        "prompts, one in each line, are better than some ten.",
    )
    model = _trained_model(loading)
    dataset = loading.add("W2SVD_PromptSet", width=420, prompts=parts.PROMPT, **SIZES)
    _distilled(flow, model.out("model"), dataset.out("dataset"), "wan_prompts", BY_NAME)
    return flow


def any_model_clips(kinds: dict[str, Kind]) -> Flow:
    """What Load Diffusion Model loads, from a folder of clips."""
    flow = Flow("07_distil_any_model_from_clips", "Distil a loaded model from clips", kinds)
    loading = flow.group(
        "1. Model and clips",
        "Any flow-matching MODEL serves, with its own text encoder and VAE: nothing is loaded a second time, and the "
        "MODEL can be sampled afterwards. Put videos with a .txt caption beside each into input/clips. They are "
        "encoded one by one; captions goes through the text encoder as a list.",
    )
    model = parts.diffusion_model(loading, parts.WAN_SMALL)
    clip, vae = parts.text_encoder(loading), parts.vae(loading)
    clips = loading.column().add("W2SVD_EncodeClips", width=400, vae=vae, folder="clips", **SIZES)
    prompts = loading.add(
        "CLIPTextEncode", "CLIP Text Encode (Captions)", width=400, clip=clip, text=clips.out("captions")
    )
    empty = loading.column().add("CLIPTextEncode", "CLIP Text Encode (Negative)", width=400, clip=clip)
    dataset = loading.add(
        "W2SVD_DatasetFromLatents",
        latents=clips.out("latents"),
        conditioning=prompts.out("CONDITIONING"),
        negative=empty.out("CONDITIONING"),
        captions=clips.out("captions"),
        data_fps=SIZES["data_fps"],
    )
    _distilled(flow, model, dataset.out("dataset"), "loaded_clips", IN_MEMORY, vae=vae)
    return flow


def any_model_prompts(kinds: dict[str, Kind]) -> Flow:
    """What Load Diffusion Model loads, from prompts alone."""
    flow = Flow("07_distil_any_model_from_prompts", "Distil a loaded model from prompts", kinds)
    loading = flow.group(
        "1. Model and prompts",
        "Any flow-matching MODEL serves, with its own text encoder and VAE. Each line of **Prompt List** goes through "
        "the text encoder by itself; the empty latent says how large the clips are to be.",
    )
    model = parts.diffusion_model(loading, parts.WAN_SMALL)
    clip, vae = parts.text_encoder(loading), parts.vae(loading)
    dataset = _encoded_prompts(loading, clip, SIZES["data_fps"])
    _distilled(flow, model, dataset, "loaded_prompts", IN_MEMORY, vae=vae)
    return flow


def hunyuan_prompts(kinds: dict[str, Kind]) -> Flow:
    """HunyuanVideo, which takes its guidance as an input, from prompts alone."""
    flow = Flow("08_distil_hunyuan_video", "Distil HunyuanVideo from prompts", kinds)
    loading = flow.group(
        "1. HunyuanVideo and prompts",
        "HunyuanVideo with its own text encoders and VAE. Each line of **Prompt List** goes through the text encoders "
        "by itself; prompts may be of any length. The empty latent says how large the clips are to be.",
    )
    model = parts.diffusion_model(loading, parts.HUNYUAN_VIDEO)
    clip, vae = parts.two_text_encoders(loading), parts.vae(loading, parts.HUNYUAN_VAE)
    dataset = _encoded_prompts(loading, clip, 24.0)
    recipe = "hunyuan_video_t2v"
    _distilled(flow, model, dataset, "hunyuan_prompts", IN_MEMORY, recipe=recipe, told=True, fps=24.0, vae=vae)
    return flow


def _encoded_prompts(loading: Group, clip: Out, fps: float) -> Out:
    """Lines of a text as a dataset."""
    lines = loading.column().add("W2SVD_PromptList", width=400, prompts=parts.PROMPT)
    prompts = loading.add(
        "CLIPTextEncode", "CLIP Text Encode (Prompts)", width=400, clip=clip, text=lines.out("prompts")
    )
    empty = loading.column().add("CLIPTextEncode", "CLIP Text Encode (Negative)", width=400, clip=clip)
    latent = loading.add("EmptyHunyuanLatentVideo")
    return loading.add(
        "W2SVD_DatasetFromConditioning",
        conditioning=prompts.out("CONDITIONING"),
        negative=empty.out("CONDITIONING"),
        size=latent.out("LATENT"),
        captions=lines.out("prompts"),
        data_fps=fps,
    ).out("dataset")


def _trained_model(group: Group) -> Node:
    """The handle of Wan 1.3B."""
    name = "Wan2.1-T2V-1.3B-Diffusers"
    return group.add(
        "W2SVD_LoadModel", width=420, model=name, model_precision="bf16", model_gradient_checkpointing=True
    )


def _distilled(
    flow: Flow,
    model: Out,
    dataset: Out,
    name: str,
    about: str,
    recipe: str = "wan_t2v_1_3b",
    told: bool = False,
    fps: float = 16.0,
    **more: Out,
) -> None:
    """Settings, the training with a note `about` it, and where its student goes; `more` inputs of Train.

    Args:
        recipe: whose settings they are.
        told: the model takes its guidance as an input.
        fps: frames a second of the clips.
    """
    words = f"Those of the recipe {recipe} where it says something else than the portraits' defaults."
    if told:
        words += " The model takes its guidance as an input: each role tells its own, the student's goes into its file."
    group = flow.group("2. Shift and settings", words)
    shift = group.add("W2SVD_RealShift")
    settings = group.add(
        "W2SVD_DistillSettings", width=400, **settings_of_recipe(recipe, flow.kinds["W2SVD_DistillSettings"])
    ).out("settings")
    if told:
        settings = group.add("W2SVD_EmbeddedGuidance", width=400, settings=settings).out("settings")
    training = flow.group("3. Train", about)
    train = training.add(
        "W2SVD_Train",
        width=460,
        model=model,
        dataset=dataset,
        shift=shift.out("shift"),
        settings=settings,
        name=name,
        **more,
    )
    ending = flow.group("4. The student", "Saved into models/loras with the noise levels that it was trained for.")
    ending.add("W2SVD_SaveLoRA", width=420, lora=train.out("lora"), name=f"w2svd/{name}")
    ending.add("W2SVD_PlotLoss", width=460, losses=train.out("losses"))
    parts.film(ending.column(), train.out("samples"), name, fps)
