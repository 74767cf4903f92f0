"""Tiny HunyuanVideo pipelines of the real classes, on disk as people have them: a diffusers folder, and single files.

Everything is random but always the same, and made once in a session. The tokenizers are trained on the spot in such a
way that the pipelines' templates take as many tokens as the published ones make of them.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kind import Asked
from tiny_wan import seeded, shaken
from torch import Tensor, nn

from w2svd_core.backbones import hunyuan_keys
from w2svd_core.backbones.hunyuan_text import PICTURE_TEMPLATE, TEMPLATE
from w2svd_core.files import write_safetensors
from w2svd_core.settings import Model

KINDS = ("t2v", "concat", "replace")
TYPES = {"t2v": None, "concat": "latent_concat", "replace": "token_replace"}  # the class's image_condition_type
TEXT, POOLED = 16, 64  # widths of a prompt's tokens, and of what CLIP says of the whole
PICTURE = 64  # width of the picture's patches in LLaVA
SIZE = (16, 32)  # pixels: 1 x 2 tokens
FRAMES = 9  # 3 latent frames
PROMPTS = ("a man with red hair talks", "a woman with glasses & a blue hat nods   slowly,\tthen smiles", "")
SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<image>", "<pad>"),
)
# how LLaMA 3 cuts a text into words (its tokenizer.json)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TinyHunyuan:
    """One pipeline.

    Attributes:
        kind: t2v, or image-to-video by concat (latents beside the noise) or replace (the first frame's own tokens).
        folder: of the diffusers pipeline.
        files: the same weights as single files, by the settings that name them.
    """

    kind: str
    folder: Path
    files: Mapping[str, Path]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a clip."""
        return SIZE

    def model(self, **changes: Any) -> Model:
        """The section of a recipe that names the pipeline."""
        return Model(**{"family": "hunyuan_video", "path": str(self.folder), **changes})

    def model_of_files(self, **changes: Any) -> Model:
        """The section of a recipe that names the single files; a tokenizer is always a folder."""
        named = {part: str(path) for part, path in self.files.items() if part != "transformer"}
        named |= {name: str(self.folder / name) for name in ("tokenizer", "tokenizer_2")}
        return self.model(**{"path": str(self.files.get("transformer", self.folder)), **named, **changes})

    def pipeline(self, image: bool | None = None) -> Any:
        """diffusers' own pipeline."""
        from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline

        made = HunyuanVideoPipeline if self.kind == "t2v" else HunyuanVideoImageToVideoPipeline
        found = made.from_pretrained(self.folder, local_files_only=True)
        found.set_progress_bar_config(disable=True)
        return found

    def reference(self, pipeline: Any, asked: Asked) -> Tensor:
        """The latents that the pipeline makes, one clip after the other, as a picture serves one alone.

        From a picture it starts from a mixture of noise and picture: it is given a noise that makes the mixture ours.
        """
        height, width = self.size
        given: dict[str, Any] = {}
        mixed = asked.noise
        if asked.picture is not None:
            given["image"] = asked.picture
            pixels = pipeline.video_processor.preprocess(asked.picture, height, width)[:, :, None]
            with torch.no_grad():
                still = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae_scaling_factor
            mixed = (asked.noise - (1 - 0.999) * still) / 0.999
            given |= self._negative(pipeline, asked.negative)
        else:
            given["negative_prompt"] = [asked.negative]
        found: list[Tensor] = []

        def watched(_: Any, step: int, time: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
            """From a picture the pipeline's answer may lack the first frame."""
            if step == asked.steps - 1:
                found.append(values["latents"])
            return {}

        for prompt, noise in zip(asked.prompts, mixed.split(1), strict=True):
            pipeline(
                prompt=[prompt],
                **given,
                height=height,
                width=width,
                num_frames=asked.frames,
                num_inference_steps=asked.steps,
                true_cfg_scale=asked.guidance,
                guidance_scale=asked.embedded,
                latents=noise.clone(),
                output_type="latent",
                callback_on_step_end=watched,
            )
        return torch.cat(found)

    def _negative(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """The negative prompt's fields, with as many of the black picture's tokens as the prompt has of its own.

        The pipeline itself keeps every second one, by token replacement too, where the prompt has every fourth.
        """
        from PIL import Image

        height, width = self.size
        black = Image.new("RGB", (width, height), 0)
        every = {"concat": 2, "replace": 4}[self.kind]
        text, pooled, mask = pipeline.encode_prompt(black, [prompt], image_embed_interleave=every)
        return {
            "negative_prompt_embeds": text,
            "negative_pooled_prompt_embeds": pooled,
            "negative_prompt_attention_mask": mask,
        }


@functools.cache
def tiny_hunyuan(kind: str = "t2v") -> TinyHunyuan:
    """The tiny pipeline of a kind; its folder is gone when the program ends."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline

    root = Path(tempfile.mkdtemp(prefix=f"tiny-hunyuan-{kind}-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    tokenizer = new_tokenizer()
    parts: dict[str, Any] = {
        "transformer": new_transformer(kind),
        "vae": new_vae(),
        "text_encoder": new_llama(len(tokenizer)) if kind == "t2v" else new_llava(tokenizer),
        "tokenizer": tokenizer,
        "text_encoder_2": new_clip(len(new_clip_tokenizer())),
        "tokenizer_2": new_clip_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }
    if kind != "t2v":
        parts["image_processor"] = new_image_processor()
    made = HunyuanVideoPipeline if kind == "t2v" else HunyuanVideoImageToVideoPipeline
    made(**parts).save_pretrained(root / "pipeline", safe_serialization=True)
    return TinyHunyuan(kind, root / "pipeline", write_native(parts, root / "files"))


def write_native(parts: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The models as the single files that ComfyUI reads, without a word on their sizes."""
    states = {
        "vae": native_vae(parts["vae"]),
        "text_encoder_2": native_clip(parts["text_encoder_2"]),
        **native_llama(parts["text_encoder"]),
    }
    transformer = parts["transformer"]
    if transformer.config.image_condition_type != "token_replace":  # whose shapes are those of text-to-video
        states["transformer"] = hunyuan_keys.to_native(transformer.state_dict())
    paths = {name: folder / f"{name}.safetensors" for name in states}
    for name, state in states.items():
        write_safetensors(paths[name], state)
    return paths


def native_vae(vae: nn.Module) -> dict[str, Tensor]:
    """The names of HunyuanVideo's makers, which diffusers kept."""
    return dict(vae.state_dict())


def native_clip(encoder: nn.Module) -> dict[str, Tensor]:
    """The names that transformers 4 gave it."""
    return {f"text_model.{n.removeprefix('text_model.')}": t for n, t in encoder.state_dict().items()}


def native_llama(encoder: nn.Module) -> dict[str, dict[str, Tensor]]:
    """LLaMA as a language model's file, and for LLaVA the file of what reads the picture."""
    state = encoder.state_dict()
    if "embed_tokens.weight" in state:
        return {"text_encoder": {f"model.{name}": tensor for name, tensor in state.items()}}
    words, projector, tower = "model.language_model.", "model.multi_modal_projector.", "model.vision_tower."
    text = {f"model.{n.removeprefix(words)}": t for n, t in state.items() if n.startswith(words)}
    text["lm_head.weight"] = state["lm_head.weight"].clone()
    image = {n.removeprefix("model."): t for n, t in state.items() if n.startswith(projector)}
    for name, tensor in state.items():
        if name.startswith(tower):
            image[f"vision_model.{name.removeprefix(tower).removeprefix('vision_model.')}"] = tensor
    return {"text_encoder": text, "image_encoder": image}


def new_transformer(kind: str) -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    with seeded(1):
        return shaken(
            HunyuanVideoTransformer3DModel(
                in_channels=33 if kind == "concat" else 16, out_channels=16, num_attention_heads=1,
                attention_head_dim=128, num_layers=1, num_single_layers=1, num_refiner_layers=1, mlp_ratio=1.0,
                guidance_embeds=kind != "concat", text_embed_dim=TEXT, pooled_projection_dim=POOLED,
                image_condition_type=TYPES[kind],
            )
        )  # fmt: skip


def new_vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    with seeded(2):
        return shaken(AutoencoderKLHunyuanVideo(block_out_channels=(32, 32, 32, 32), layers_per_block=1))


def new_llama(words: int) -> Any:
    from transformers import LlamaModel

    with seeded(3):
        return shaken(LlamaModel(llama_config(words)))


def llama_config(words: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=words, hidden_size=TEXT, head_dim=128, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, num_hidden_layers=4, rms_norm_eps=1e-5, rope_theta=500000.0, bos_token_id=0,
        eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip


def new_llava(tokenizer: Any) -> Any:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=PICTURE, num_attention_heads=1, intermediate_size=48, num_hidden_layers=3, image_size=336,
        patch_size=14, projection_dim=32,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision,
        text_config=llama_config(len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(4):
        return shaken(LlavaForConditionalGeneration(config))


def new_clip(words: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=words, hidden_size=POOLED, num_attention_heads=1, intermediate_size=48, num_hidden_layers=2,
        max_position_embeddings=77, projection_dim=32, bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=1,
    )  # fmt: skip
    with seeded(5):
        return shaken(CLIPTextModel(config))


def new_tokenizer() -> Any:
    """LLaMA 3's way, knowing the templates' words as wholes and all others by their letters."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    corpus = ["system", "user", "assistant"]  # stand alone between special words
    for template in (TEMPLATE, PICTURE_TEMPLATE):
        for word in SPECIAL:
            template = template.replace(word, " ")
        corpus.append(f"\n\n{template}")
    made = whole_words(corpus, SPECIAL)
    made.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], made.token_to_id(SPECIAL[0]))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token="<pad>", padding_side="right"
    )


def whole_words(corpus: Sequence[str], special: Sequence[str]) -> Any:
    """Pieces of bytes as LLaMA 3's and Qwen's, that know the words of some texts as wholes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(special),
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    return made


def new_clip_tokenizer() -> Any:
    """CLIP's way, by letters; unknown ones are the end, as CLIP has it."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz,.&"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)


def new_image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
