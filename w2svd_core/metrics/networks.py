"""The feature networks behind the Fréchet distances, the diversity and the caption probe, and their loading.

Two small convolutional networks, trained on the project's own rendered portraits by `train_networks.py` and
then frozen:

- the *portrait video features*: 3-D, whole clips, 48 features;
- the *portrait frame features*: 2-D, single frames, 48 features.

They know rendered portraits and nothing else. Distances in their features are not FVD or FID and can't be
compared with published numbers; they compare students of this project with each other.

Each network is a stack of strided convolutions, a pooling, a linear layer to the features, and linear heads
on the features: one per attribute of `data/portraits.py`, and one for `QUANTITIES`. Those are the amounts of
`corruptions.py`, the activity (log of 1 plus the mean absolute change of brightness between frames, in
levels), how open the mouth is (mean and standard deviation over time) and how closed the eyes are. The
attribute heads of the video network are the caption probe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data import portraits
from ..errors import UserError
from ..files import read_safetensors
from .corruptions import STRENGTHS

Kind = Literal["video", "frame"]
Videos = NDArray[np.uint8]

SIDE = 32  # px, the size that the networks were trained at (the default size of the portraits)
FEATURES = 48
MINIMUM_FRAMES = 4
FRAME_STRIDE = 4  # every fourth frame goes into the frame statistics
CHANNELS = (16, 48, 64, 64)
GRID = 4  # the last maps are 4 x 4: where something is stays readable
STRIDES: dict[Kind, tuple[tuple[int, ...], ...]] = {
    "video": ((2, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2)),
    "frame": ((1, 1), (2, 2), (2, 2), (2, 2)),
}
FILES: dict[Kind, str] = {
    "video": "portrait_video_features.safetensors",
    "frame": "portrait_frame_features.safetensors",
}
FORMAT = "w2svd-portrait-features-1"
QUANTITIES = (*STRENGTHS, "activity", "mouth", "mouth motion", "blink")
ASSETS = Path(__file__).parent.parent / "assets"
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Reading:
    """What a network says of N samples: features (N, 48), attribute logits (N, C), quantities (N, Q)."""

    features: Tensor
    logits: dict[str, Tensor]
    quantities: Tensor


class FeatureNetwork(nn.Module):
    """Convolutions, pooling, features, heads. `batch_norm` is for training only; `folded()` removes it.

    Args:
        kind: "video" (3-D) or "frame" (2-D).
        attributes: the classes of each attribute, in the order of the logits.
        batch_norm: a batch norm after each convolution.
    """

    def __init__(self, kind: Kind, attributes: Mapping[str, Sequence[str]], batch_norm: bool = False) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        previous = 4 if kind == "video" else 3
        for width, stride in zip(CHANNELS, STRIDES[kind], strict=True):
            self.convolutions.append(_convolution(kind, previous, width, stride))
            self.norms.append(_norm(kind, width) if batch_norm else nn.Identity())
            previous = width
        cells = GRID**2 + (4 if kind == "video" else 0)
        self.to_features = nn.Linear(previous * cells, FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(v)) for name, v in self.attributes.items()})
        self.quantities = nn.Linear(FEATURES, len(QUANTITIES))

    def forward(self, x: Tensor) -> Reading:
        """Read clips `b f c h w` (video) or frames `b c h w` (frame), RGB in [0, 1], h = w = 32."""
        x = _video_input(x) if self.kind == "video" else (x * 2 - 1).contiguous(memory_format=torch.channels_last)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.silu(norm(convolution(x)))
        features = self.to_features(_pooled(x))
        logits = {name: head(features) for name, head in self.heads.items()}
        return Reading(features, logits, self.quantities(features))

    def folded(self) -> FeatureNetwork:
        """The same function without batch norms: their running statistics go into the convolutions."""
        from torch.nn.utils.fusion import fuse_conv_bn_weights

        plain = FeatureNetwork(self.kind, self.attributes)
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("norms.")}
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d) and isinstance(convolution, nn.Conv2d | nn.Conv3d):
                assert norm.running_mean is not None and norm.running_var is not None
                weight, bias = fuse_conv_bn_weights(
                    convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
                    norm.weight, norm.bias,
                )  # fmt: skip
                state[f"convolutions.{index}.weight"], state[f"convolutions.{index}.bias"] = weight, bias
        plain.load_state_dict(state)
        return plain.eval()

    @torch.no_grad()
    def scale_features(self, factor: float) -> None:
        """Multiply the features by `factor` and leave every head's output as it is."""
        self.to_features.weight.mul_(factor)
        self.to_features.bias.mul_(factor)
        for head in (*self.heads.values(), self.quantities):
            assert isinstance(head, nn.Linear)
            head.weight.div_(factor)


def _convolution(kind: Kind, inputs: int, outputs: int, stride: tuple[int, ...]) -> nn.Module:
    """A 3 x 3 (x 3) convolution, its weight laid out with channels last: twice as fast on a CPU."""
    if kind == "video":
        volume = nn.Conv3d(inputs, outputs, 3, stride=(stride[0], stride[1], stride[2]), padding=1)
        volume.weight.data = volume.weight.data.contiguous(memory_format=torch.channels_last_3d)
        return volume
    plane = nn.Conv2d(inputs, outputs, 3, stride=(stride[0], stride[1]), padding=1)
    plane.weight.data = plane.weight.data.contiguous(memory_format=torch.channels_last)
    return plane


def _norm(kind: Kind, width: int) -> nn.Module:
    return nn.BatchNorm3d(width) if kind == "video" else nn.BatchNorm2d(width)


def _video_input(x: Tensor) -> Tensor:
    """Clips `b f c h w` in [0, 1] to `b 4 f h w`: colour in [-1, 1], and change of brightness in time."""
    luma = (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(2, keepdim=True)  # b f 1 h w
    change = F.pad(luma[:, 1:] - luma[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))  # the first frame has no change
    both = torch.cat([x * 2 - 1, change * 4], dim=2)
    return both.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


def _pooled(x: Tensor) -> Tensor:
    """Maps `b c h w` on a 4 x 4 grid; of `b c f h w` mean in time on 4 x 4, spread on 2 x 2; flat."""
    if x.ndim == 4:
        return F.adaptive_avg_pool2d(x, GRID).flatten(1)
    b, c, f, h, w = x.shape
    cells = F.adaptive_avg_pool2d(x.transpose(1, 2).reshape(b * f, c, h, w), GRID)  # (b f) c 4 4
    coarse = F.adaptive_avg_pool2d(cells, 2).reshape(b, f, -1)
    spread = (coarse.var(1, correction=0) + 1e-6).sqrt()
    return torch.cat([cells.reshape(b, f, -1).mean(1), spread], dim=1)


def to_input(videos: Videos) -> Tensor:
    """Clips uint8 (N, F, H, W, 3) to float (N, F, 3, 32, 32) in [0, 1]; other sizes are resized, antialiased.

    The number of frames stays: the network is convolutional in time and pools over it.

    Raises:
        UserError: not uint8 of that shape, no clip, or fewer than 4 frames.
    """
    check_videos(videos)
    n, f, h, w, _ = videos.shape
    x = to_unit(videos)
    if (h, w) != (SIDE, SIDE):
        flat = F.interpolate(x.reshape(n * f, 3, h, w), (SIDE, SIDE), mode="bilinear", antialias=True)
        x = flat.view(n, f, 3, SIDE, SIDE)
    return x


def to_unit(videos: Videos) -> Tensor:
    """Clips uint8 `b f h w c` to float `b f c h w` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(videos)).permute(0, 1, 4, 2, 3).float() / 255


def check_videos(videos: Videos) -> None:
    """Refuse what is not a uint8 batch of clips (N, F, H, W, 3) with N >= 1 and F >= 4.

    Raises:
        UserError: says what the array is and what is needed.
    """
    good = videos.ndim == 5 and videos.dtype == np.uint8 and videos.shape[0] >= 1 and videos.shape[-1] == 3
    if not good:
        raise UserError(
            f"the clips to measure are {videos.dtype} of shape {tuple(videos.shape)}; "
            "give uint8 of shape (clips, frames, height, width, 3) with at least one clip"
        )
    if videos.shape[1] < MINIMUM_FRAMES:
        raise UserError(f"the clips to measure have {videos.shape[1]} frames; at least {MINIMUM_FRAMES} are needed")


@torch.inference_mode()
def read_videos(network: FeatureNetwork, videos: Videos, batch: int = 32) -> Reading:
    """Read clips uint8 (N, F, H, W, 3) in batches; the features are float64.

    A frame network reads every fourth frame of each clip, so that N becomes N * ceil(F / 4), clip after clip.
    """
    check_videos(videos)
    parts: list[Reading] = []
    for start in range(0, len(videos), batch):
        chunk = videos[start : start + batch]
        clips = to_input(chunk)
        parts.append(network(clips if network.kind == "video" else clips[:, ::FRAME_STRIDE].flatten(0, 1)))
    return Reading(
        torch.cat([part.features for part in parts]).double(),
        {name: torch.cat([part.logits[name] for part in parts]) for name in network.attributes},
        torch.cat([part.quantities for part in parts]),
    )


@lru_cache(maxsize=2)
def load_network(kind: Kind, folder: Path = ASSETS) -> FeatureNetwork:
    """The frozen network of a kind from the package's assets; loaded once per process.

    Raises:
        UserError: the file is missing, broken, of another layout, or of another set of portrait attributes.
    """
    path = folder / FILES[kind]
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT or metadata.get("kind") != kind:
        raise UserError(f"{path} is not a {kind} feature network of this version; restore it from the package")
    attributes = json.loads(metadata["attributes"])
    if attributes != {name: list(values) for name, values in portraits.ATTRIBUTES.items()}:
        raise UserError(
            f"{path} reads other portrait attributes than data/portraits.py draws; "
            "train it again with: python -m w2svd_core.metrics.train_networks"
        )
    network = FeatureNetwork(kind, attributes)
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the {kind} feature network; restore it from the package") from error
    return network.eval().requires_grad_(False)
