"""Names of a HunyuanVideo transformer in its worlds: diffusers' modules, Tencent's own, and ComfyUI's.

Checkpoints are written in Tencent's names, which every ComfyUI and Tencent's own code read; LoRA files too, but for the
modules that ComfyUI's LoRA reader knows by its own names alone. Read are all three, and kohya's (musubi's) flat ones.
A native layer may hold several diffusers layers: q, k and v; q, k, v and the feed-forward's first layer in single
blocks; and the last layer's modulation with its halves the other way round. The module itself is a `KeyMap`.
"""

from __future__ import annotations

from .block_keys import LAST, MLP_IN_LAYER, BlockKeys, Names, Place


def embedder(ours: str, native: str, ends: Names) -> dict[str, Names]:
    """Of two layers that ComfyUI calls in_layer and out_layer."""
    own = f"{native}.in_layer", f"{native}.out_layer"
    return {f"{ours}.linear_{n + 1}": (f"{native}.{end}", own[n]) for n, end in enumerate(ends)}


def _stream(side: str, attention: Names, norms: Names, feed: str, modulation: str) -> dict[str, Names]:
    """Of the picture's (img) or the text's (txt) half of a double block; attention: q, k, v, out."""
    *qkv, out = attention
    fused = f"{side}_attn_qkv", f"{side}_attn_qkv", f"{side}_attn.qkv"
    return {
        # HunyuanVideo 1.5 has them apart, too
        **{f"attn.{name}": (*fused, f"{side}_attn_{x}") for name, x in zip(qkv, "qkv", strict=True)},
        f"attn.{out}": (f"{side}_attn_proj", f"{side}_attn_proj", f"{side}_attn.proj"),
        f"attn.{norms[0]}": (f"{side}_attn_q_norm", f"{side}_attn.norm.query_norm"),
        f"attn.{norms[1]}": (f"{side}_attn_k_norm", f"{side}_attn.norm.key_norm"),
        f"{feed}.net.0.proj": (f"{side}_mlp.fc1", f"{side}_mlp.fc1", f"{side}_mlp.0"),
        f"{feed}.net.2": (f"{side}_mlp.fc2", f"{side}_mlp.fc2", f"{side}_mlp.2"),
        f"{modulation}.linear": (f"{side}_mod.linear", f"{side}_mod.linear", f"{side}_mod.lin"),
    }


# what HunyuanVideo 1.5 has, too
EVERY_TOP: dict[str, Names] = {
    "x_embedder.proj": ("img_in.proj",),
    "context_embedder.proj_in": ("txt_in.input_embedder",),
    **embedder("context_embedder.time_text_embed.timestep_embedder", "txt_in.t_embedder", ("mlp.0", "mlp.2")),
    **embedder("context_embedder.time_text_embed.text_embedder", "txt_in.c_embedder", ("linear_1", "linear_2")),
    LAST: ("final_layer.adaLN_modulation.1",),
    "proj_out": ("final_layer.linear",),
}
_REFINER: dict[str, Names] = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    **{f"attn.to_{name}": ("self_attn_qkv", "self_attn_qkv", "self_attn.qkv") for name in "qkv"},
    "attn.to_out.0": ("self_attn_proj", "self_attn_proj", "self_attn.proj"),
    "ff.net.0.proj": ("mlp.fc1", "mlp.fc1", "mlp.0"),
    "ff.net.2": ("mlp.fc2", "mlp.fc2", "mlp.2"),
    "norm_out.linear": ("adaLN_modulation.1",),
}
_DOUBLE: dict[str, Names] = {
    **_stream("img", ("to_q", "to_k", "to_v", "to_out.0"), ("norm_q", "norm_k"), "ff", "norm1"),
    **_stream(
        "txt",
        ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        ("norm_added_q", "norm_added_k"),
        "ff_context",
        "norm1_context",
    ),
}
BLOCKS: tuple[Place, ...] = (
    ("context_embedder.token_refiner.refiner_blocks.", "txt_in.individual_token_refiner.blocks.", _REFINER),
    ("transformer_blocks.", "double_blocks.", _DOUBLE),
)
_TOP: dict[str, Names] = {
    **EVERY_TOP,
    **embedder("time_text_embed.timestep_embedder", "time_in", ("mlp.0", "mlp.2")),
    **embedder("time_text_embed.guidance_embedder", "guidance_in", ("mlp.0", "mlp.2")),
    **embedder("time_text_embed.text_embedder", "vector_in", ("in_layer", "out_layer")),
}
_SINGLE: dict[str, Names] = {
    **{f"attn.to_{name}": ("linear1",) for name in "qkv"},
    MLP_IN_LAYER: ("linear1",),
    "proj_out": ("linear2",),
    "attn.norm_q": ("q_norm", "norm.query_norm"),
    "attn.norm_k": ("k_norm", "norm.key_norm"),
    "norm.linear": ("modulation.linear", "modulation.linear", "modulation.lin"),
}

KEYS = BlockKeys("HunyuanVideo", (("", "", _TOP), *BLOCKS, ("single_transformer_blocks.", "single_blocks.", _SINGLE)))
component, native_module, parts, native_alpha = KEYS.component, KEYS.native_module, KEYS.parts, KEYS.native_alpha
to_native, diffusers_names, fitted, as_headless = KEYS.to_native, KEYS.diffusers_names, KEYS.fitted, KEYS.as_headless
