"""Train the feature networks on rendered portraits: `python -m w2svd_core.metrics.train_networks`.

Both networks learn, from clips of which half are corrupted on purpose, to read every attribute that a
portrait can have, the amount of each corruption, how much changes from frame to frame, and the paths of mouth
and eyelids. That makes their features see both *what* a clip shows and *how badly*. The files in
`w2svd_core/assets/` were made by this command with its defaults, once, before any student was tuned. The same
machine, versions, seed and one thread give the same files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import portraits
from ..data.portrait_motion import pose_at
from ..errors import guarded
from ..files import write_safetensors
from .adherence import probe_accuracy
from .corruptions import IN_A_FRAME, STRENGTHS, corrupt
from .networks import (
    ASSETS,
    FEATURES,
    FILES,
    FORMAT,
    FRAME_STRIDE,
    LUMA,
    QUANTITIES,
    SIDE,
    FeatureNetwork,
    Kind,
    Videos,
    load_network,
    read_videos,
    to_unit,
)

Labels = dict[str, Tensor]

FIRST_SEED = 2_000_000
HELD_OUT_SEED = 2_900_000
FRAMES = 17
FPS = 8.0
QUANTITY_WEIGHT = 4.0


@dataclass(frozen=True)
class Portraits:
    """Clips uint8 (N, 17, 32, 32, 3), true attributes, and the paths (N, 17, 2) of mouth and eyelids."""

    videos: Videos
    truth: list[dict[str, str]]
    paths: Tensor

    def labels(self) -> Labels:
        """True attributes as class numbers: {attribute: (N,)}."""
        return {
            name: torch.tensor([values.index(true[name]) for true in self.truth])
            for name, values in portraits.ATTRIBUTES.items()
        }


def rendered(first_seed: int, count: int) -> Portraits:
    """Portraits of consecutive seeds, at 8 frames a second."""
    videos = np.empty((count, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    paths = torch.empty(count, FRAMES, 2)
    truth = []
    times = np.arange(FRAMES, dtype=np.float32) / np.float32(FPS)
    for index in range(count):
        portrait = portraits.portrait_from_seed(first_seed + index)
        videos[index] = portraits.render(portrait, frames=FRAMES, height=SIDE, width=SIDE, fps=FPS)
        truth.append(dict(portraits.attributes(portrait)))
        pose = pose_at(portrait.motion, portrait.action, times)
        for column, path in enumerate((pose.mouth, pose.blink)):
            values = np.broadcast_to(np.asarray(path, dtype=np.float32).reshape(-1), (FRAMES,))
            paths[index, :, column] = torch.from_numpy(values.copy())
    return Portraits(videos, truth, paths)


def train(kind: Kind, data: Portraits, steps: int, seed: int) -> FeatureNetwork:
    """Train one network; return it folded, its features scaled to a mean variance of 1 on clean clips."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    labels = data.labels()
    network = FeatureNetwork(kind, portraits.ATTRIBUTES, batch_norm=True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.02)
    batches = _batches(kind, data, generator)
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps)
        index, x, quantities, known = next(batches)
        reading = network(x)
        named = [F.cross_entropy(reading.logits[name], labels[name][index]) for name in labels]
        off = F.smooth_l1_loss(reading.quantities, quantities, beta=0.1, reduction="none")
        quantity_loss = (off * known).sum() / known.sum()
        loss = torch.stack(named).mean() + QUANTITY_WEIGHT * quantity_loss
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        if step % 50 == 49 or step == 0:
            pace = (time.monotonic() - started) / (step + 1)
            attribute_loss = float(torch.stack(named).mean().detach())
            print(
                f"{kind} {step + 1}/{steps}  attributes {attribute_loss:.3f}  "
                f"quantities {float(quantity_loss.detach()):.4f}  {pace:.2f} s/step",
                flush=True,
            )
    plain = network.eval().folded()
    features = read_videos(plain, data.videos[:1024]).features
    plain.scale_features(math.sqrt(FEATURES / float(features.var(0).sum())))
    return plain


def _rate(step: int, steps: int, peak: float = 4e-3) -> float:
    warm = min(1.0, (step + 1) / (0.05 * steps))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-6


def _batches(
    kind: Kind, data: Portraits, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Without end: clip numbers (B,), network input, true quantities (B, Q), and which count (B, Q)."""
    size = 32 if kind == "video" else 128
    while True:
        for index in torch.split(torch.randperm(len(data.videos), generator=generator), size):
            if len(index) < size:
                continue
            clips, paths = data.videos[index.numpy()], data.paths[index]
            if kind == "frame":
                frame = torch.randint(FRAMES, (size,), generator=generator)
                clips = clips[np.arange(size), frame.numpy()][:, None]
                paths = paths[torch.arange(size), frame][:, None]
            x = to_unit(clips)
            mirrored = torch.rand(size, generator=generator) < 0.5
            x = torch.where(mirrored.view(-1, 1, 1, 1, 1), x.flip(-1), x)
            only = STRENGTHS if kind == "video" else IN_A_FRAME
            pairs = [_half_corrupted(clip, generator, only) for clip in x]
            x = torch.stack([clip for clip, _ in pairs])
            amounts = torch.stack([amount for _, amount in pairs])
            quantities = torch.cat([amounts, _activity(x), _expression(paths)], dim=1)
            yield index, x if kind == "video" else x[:, 0], quantities, _known(kind, amounts)


def _known(kind: Kind, amounts: Tensor) -> Tensor:
    """Which quantities (B, Q) can be seen: no movement in a frame, no true expression in a frozen clip."""
    count = len(amounts)
    if kind == "frame":
        row = [float(name in (*IN_A_FRAME, "mouth", "blink")) for name in QUANTITIES]
        return torch.tensor(row).expand(count, -1)
    known = torch.ones(count, len(QUANTITIES))
    retimed = (amounts[:, [STRENGTHS.index("freeze"), STRENGTHS.index("damp")]] > 0).any(1)
    known[retimed, -3:] = 0
    return known


def _expression(paths: Tensor) -> Tensor:
    """Mean opening of the mouth, its standard deviation, mean closing of the eyes: (B, F, 2) to (B, 3)."""
    mouth, blink = paths.unbind(-1)
    return torch.stack([mouth.mean(1), mouth.std(1, correction=0), blink.mean(1)], dim=1)


def _half_corrupted(clip: Tensor, generator: torch.Generator, only: Sequence[str]) -> tuple[Tensor, Tensor]:
    if float(torch.rand((), generator=generator)) < 0.5:
        return clip, torch.zeros(len(STRENGTHS))
    return corrupt(clip, generator, share=0.3, only=only)


def _activity(x: Tensor) -> Tensor:
    """log(1 + mean absolute change of brightness between frames, in levels) of `b f c h w`: (B, 1)."""
    if x.shape[1] < 2:
        return x.new_zeros(len(x), 1)
    luma = torch.einsum("bfchw,c->bfhw", x, x.new_tensor(LUMA)) * 255
    return (luma[:, 1:] - luma[:, :-1]).abs().mean((1, 2, 3)).log1p().unsqueeze(1)


def save(network: FeatureNetwork, folder: Path, facts: dict[str, str]) -> Path:
    """Write a folded network as fp16 safetensors."""
    path = folder / FILES[network.kind]
    metadata = {
        "format": FORMAT,
        "kind": network.kind,
        "attributes": json.dumps({name: list(values) for name, values in network.attributes.items()}),
        **facts,
    }
    write_safetensors(path, {name: tensor.half() for name, tensor in network.state_dict().items()}, metadata)
    return path


def report(kind: Kind, folder: Path, data: Portraits) -> None:
    """Print how well a saved network reads held-out portraits, clean and corrupted."""
    network = load_network(kind, folder)
    videos = data.videos
    if kind == "frame":
        videos = np.repeat(videos[:, 8:9], FRAME_STRIDE, axis=1)  # four equal frames: one sample for each clip
    reading = read_videos(network, videos)
    print(f"{kind}: share of {len(videos)} held-out portraits read right (chance)")
    for name, share in probe_accuracy(reading, network.attributes, data.truth).items():
        print(f"  {name:<14} {share:.3f} ({1 / len(network.attributes[name]):.2f})")
    paths = data.paths if kind == "video" else data.paths[:, 8:9]
    _print_correlations(QUANTITIES[-3:], reading.quantities[:, -3:], _expression(paths))
    if kind == "video":
        generator = torch.Generator().manual_seed(1)
        pairs = [corrupt(clip, generator) for clip in to_unit(videos)]
        with torch.inference_mode():
            read = torch.cat([network(clip[None]).quantities for clip, _ in pairs])
        _print_correlations(STRENGTHS, read, torch.stack([amounts for _, amounts in pairs]))


def _print_correlations(names: Sequence[str], read: Tensor, true: Tensor) -> None:
    for index, name in enumerate(names):
        both = torch.stack([read[:, index], true[:, index]])
        if float(true[:, index].std()) > 0:
            print(f"  {name:<14} correlation with the truth {float(torch.corrcoef(both)[0, 1]):.3f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command-line door."""
    parser = argparse.ArgumentParser(description="Train the feature networks of the metrics on rendered portraits.")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the two files (default: the package's)")
    parser.add_argument("--clips", type=int, default=2000, help="portraits to render (default 2000)")
    parser.add_argument("--steps", type=int, default=800, help="updates of the video network, 32 clips (default 800)")
    parser.add_argument(
        "--frame-steps", type=int, default=500, help="updates of the frame network, 128 frames (default 500)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and corruptions (default 0)")
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.monotonic()
    data, held_out = rendered(FIRST_SEED, settings.clips), rendered(HELD_OUT_SEED, 256)
    print(f"rendered {settings.clips} + 256 portraits in {time.monotonic() - started:.0f} s", flush=True)
    facts = {"seed": str(settings.seed), "clips": str(settings.clips), "first_seed": str(FIRST_SEED)}
    plan: tuple[tuple[Kind, int], ...] = (("video", settings.steps), ("frame", settings.frame_steps))
    for kind, steps in plan:
        started = time.monotonic()
        network = train(kind, data, steps, settings.seed)
        path = save(network, settings.out, facts | {"steps": str(steps)})
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB in {(time.monotonic() - started) / 60:.1f} minutes")
        report(kind, settings.out, held_out)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
