"""The workflows that run on a CPU with nothing to download."""

from __future__ import annotations

import parts
from graph import Flow, Kind

WORDS = "A pale person with long red hair, green clothes, talking"
FPS = 8.0
BESIDE = 2.0  # height over width of four clips below each other, two beside each other


def teacher(kinds: dict[str, Kind]) -> Flow:
    """The bundled teacher in 28 steps and in four."""
    flow = Flow("00_portraits_teacher", "Portraits: the teacher", kinds)
    loading = flow.group(
        "1. The bundled teacher",
        "A Wan model of 2.8 million weights that draws talking heads. Everything in this graph runs on a CPU, in "
        "seconds and with nothing to download.",
    )
    model = loading.add("W2SVD_PortraitModel")
    prompt = loading.add("W2SVD_PortraitPrompt", text=WORDS)
    latent = loading.add("W2SVD_PortraitLatent", batch_size=4)
    noise = loading.add("W2SVD_Noise", seed=1000000)
    columns = []
    for steps, about in ((28, "What a student is distilled from."), (4, "What a few-step student has to beat.")):
        group = flow.group(f"{len(columns) + 2}. {steps} steps", about)
        sigmas = group.add("W2SVD_Sigmas", source="steps", steps=steps, shift=5.0)
        sampler = group.add("W2SVD_Sampler", mode="ode")
        done = parts.sampled(
            group,
            model.out("model"),
            prompt.out("conditioning"),
            noise.out("noise"),
            sampler.out("sampler"),
            sigmas.out("all"),
            latent.out("latent"),
        )
        columns.append(parts.decoded(group, done, model.out("vae")))
    ending = flow.group(
        "4. Side by side", "Four clips of one caption. With four steps they blur and move a little less."
    )
    ending.add(
        "W2SVD_SideBySide",
        width=320,
        shape=BESIDE,
        first=columns[0],
        second=columns[1],
        names="28 steps, 4 steps",
        clips=4,
        fps=FPS,
    )
    numbers = ending.column()
    numbers.add("W2SVD_Metrics", width=460, images=columns[1], reference=columns[0], clips=4)
    parts.film(numbers, columns[0], "portraits_teacher", FPS, 1.0)
    return flow


def distil(kinds: dict[str, Kind]) -> Flow:
    """A complete distillation, and its student beside the teacher."""
    flow = Flow("03_portraits_distil", "Portraits: distil four steps", kinds)
    loading = flow.group(
        "1. Teacher, clips, settings",
        "A complete distillation on a CPU with nothing to download. The clips are drawn on first use. **Weak-Weight "
        "Real-DiT Shift** is what sets W2SVD apart from DMD2 (weight 0).",
    )
    model = loading.add("W2SVD_PortraitModel")
    clips = loading.add("W2SVD_DatasetFromFolder")
    shift = loading.add("W2SVD_RealShift")
    settings = loading.column().add("W2SVD_DistillSettings", width=380)
    training = flow.group(
        "2. Train",
        "The node shows a preview, losses and the time that is left; **Cancel** saves, and Run goes on from "
        "there. A run that is finished is read from output/w2svd instead of being made again. The same recipe runs "
        "with python -m w2svd_core.train.",
    )
    train = training.add(
        "W2SVD_Train",
        width=460,
        model=model.out("w2svd model"),
        dataset=clips.out("dataset"),
        shift=shift.out("shift"),
        settings=settings.out("settings"),
        name="portraits",
    )
    training.column().add("W2SVD_PlotLoss", width=460, losses=train.out("losses"))
    training.add("W2SVD_SaveLoRA", width=460, lora=train.out("lora"), name="w2svd/portraits", if_exists="replace")
    asking = flow.group(
        "3. Prompt and noise", "The same for teacher and student, so that only the steps differ.", below=True
    )
    prompt = asking.add("W2SVD_PortraitPrompt", text=WORDS)
    latent = asking.add("W2SVD_PortraitLatent", batch_size=4)
    noise = asking.add("W2SVD_Noise", seed=1000000)
    start = noise.out("noise"), latent.out("latent"), prompt.out("conditioning")
    slow = flow.group("4. Teacher: 28 steps", "Core's sampler on the native model.")
    sigmas = slow.add("W2SVD_Sigmas", source="steps", steps=28, shift=5.0)
    euler = slow.add("KSamplerSelect")
    teacher_done = parts.sampled(
        slow, model.out("model"), start[2], start[0], euler.out("SAMPLER"), sigmas.out("all"), start[1]
    )
    columns = [parts.decoded(slow, teacher_done, model.out("vae"))]
    fast = flow.group("5. Student: 4 steps", "Its LoRA says which noise levels and which sampler it was trained for.")
    lora = fast.add("W2SVD_LoadLoRA", width=380, model=model.out("model"), lora_model=train.out("lora"))
    student = parts.sampled(
        fast, lora.out("model"), start[2], start[0], lora.out("sampler"), lora.out("sigmas"), start[1]
    )
    columns.append(parts.decoded(fast, student, model.out("vae")))
    ending = flow.group("6. Side by side", "Few-step students lose motion and colour first: read the numbers, too.")
    ending.add("W2SVD_Metrics", width=460, images=columns[1], reference=columns[0], clips=4)
    parts.film(ending, columns[1], "portraits_student", FPS, 1.0)
    names = "teacher 28 steps, student 4 steps"
    beside = {"first": columns[0], "second": columns[1], "names": names, "clips": 4, "fps": FPS}
    ending.column().add("W2SVD_SideBySide", width=320, shape=BESIDE, **beside)
    return flow
