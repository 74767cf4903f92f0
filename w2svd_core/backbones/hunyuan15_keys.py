"""Names of a HunyuanVideo 1.5 transformer: its blocks have HunyuanVideo's, its top has some of its own.

Files are written in the names that ComfyUI reads (Tencent's, with q, k and v in one layer); Tencent's own 1.5 files
have them apart, and are read, too. The module itself is a `KeyMap`.
"""

from __future__ import annotations

from .block_keys import BlockKeys, Names
from .hunyuan_keys import BLOCKS, EVERY_TOP, embedder

MEANFLOW = "time_embed.timestep_embedder_r"  # of the step-distilled release alone
_TOP: dict[str, Names] = {
    **EVERY_TOP,
    **embedder("time_embed.timestep_embedder", "time_in", ("mlp.0", "mlp.2")),
    **embedder(MEANFLOW, "time_r_in", ("mlp.0", "mlp.2")),
    "context_embedder_2.norm": ("byt5_in.layernorm",),
    **{f"context_embedder_2.linear_{n}": (f"byt5_in.fc{n}",) for n in (1, 2, 3)},
    "image_embedder.norm_in": ("vision_in.proj.0",),
    "image_embedder.linear_1": ("vision_in.proj.1",),
    "image_embedder.linear_2": ("vision_in.proj.3",),
    "image_embedder.norm_out": ("vision_in.proj.4",),
    "cond_type_embed": ("cond_type_embedding",),
}

KEYS = BlockKeys("HunyuanVideo 1.5", (("", "", _TOP), *BLOCKS))
component, native_module, parts, native_alpha = KEYS.component, KEYS.native_module, KEYS.parts, KEYS.native_alpha
to_native, diffusers_names, fitted, as_headless = KEYS.to_native, KEYS.diffusers_names, KEYS.fitted, KEYS.as_headless
