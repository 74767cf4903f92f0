"""What the shapes of a file's tensors tell of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

Shapes = Mapping[str, Sequence[int]]  # diffusers' name of a parameter -> its shape


def t5_sizes(shapes: Shapes, table: str) -> dict[str, int]:
    """The arguments of a T5 encoder's config that shapes tell, by transformers' names.

    Args:
        table: the name of the table of words.
    """
    block = "encoder.block.0.layer"
    vocabulary, width = shapes[table]
    buckets, heads = shapes[f"{block}.0.SelfAttention.relative_attention_bias.weight"]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes[f"{block}.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{block}.1.DenseReluDense.wi_0.weight"][0],
        "num_heads": heads,
        "num_layers": 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
        "relative_attention_num_buckets": buckets,
    }


def decoder_sizes(shapes: Shapes, head_dim: int) -> dict[str, int]:
    """The arguments of a LLaMA's or Qwen's config that shapes tell, by transformers' names.

    Args:
        head_dim: that no shape tells.
    """
    vocabulary, width = shapes["embed_tokens.weight"]
    heads, keys = (shapes[f"layers.0.self_attn.{x}_proj.weight"][0] // head_dim for x in "qk")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers.")),
    }


@dataclass(frozen=True)
class Told:
    """The shapes of one file.

    Attributes:
        shapes: by diffusers' names.
        place: of the file, for messages.
        what: the model's kind, for messages.
    """

    shapes: Shapes
    place: Path | str
    what: str

    def shape(self, name: str, dimensions: int) -> Sequence[int]:
        """The shape of a parameter.

        Raises:
            UserError: it is missing, or of other dimensions.
        """
        found = self.shapes.get(name)
        if found is None or len(found) != dimensions:
            raise UserError(f"{self.place} has no whole {name}, so it does not hold a whole {self.what}; copy it again")
        return found

    def blocks(self, prefix: str) -> int:
        """How many numbered blocks there are: `prefix` is what stands before the number."""
        numbers = (int(name[len(prefix) :].split(".")[0]) for name in self.shapes if name.startswith(prefix))
        return 1 + max(numbers, default=-1)

    def heads(self, width: int, head_dim: int) -> int:
        """Of a model that is so wide, whose published kin have heads of `head_dim`, which no shape tells.

        Raises:
            UserError: the width is no multiple of it.
        """
        if width % head_dim:
            raise UserError(
                f"{self.place} does not say its architecture, and {width} is no multiple of the usual head of "
                f"{head_dim}; give model.path a diffusers folder, or a native file that this project wrote"
            )
        return width // head_dim
