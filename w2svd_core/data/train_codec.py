"""How the bundled codec was made: `python -m w2svd_core.data.train_codec --out codec.safetensors`.

Two stages. The linear parts are fitted in closed form: principal components in, ridge regression out. Then the
decoder's networks are trained on what the linear decoder leaves soft; the latents do not change any more.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import guarded
from ..files import write_safetensors
from .codec import PortraitCodec, Video, load_portrait_codec, reconstruction_loss, to_pixels, to_signed
from .portraits import portrait_from_seed, render

HELD_OUT_SEED = 3_000_000
FRAMES, SIZE = 17, 32
LATENT_NOISE = 0.05  # models do not draw latents exactly
WHITENING = 0.25  # 0 leaves the components as strong as they are in the pixels, 1 makes them all alike


def render_clips(first_seed: int, count: int) -> Video:
    """`count` portraits at the default size, `n f h w 3`."""
    return np.stack([render(portrait_from_seed(first_seed + i), FRAMES, SIZE, SIZE) for i in range(count)])


@torch.no_grad()
def fit_linear(codec: PortraitCodec, video: Tensor) -> None:
    """Principal components of the blocks, scaled; and the linear decoder that reverses them best in least squares."""
    blocks = codec.blocks(video)
    flat = blocks.flatten(0, 3).double()
    codec.mean.copy_(flat.mean(0))
    strength, directions = torch.linalg.eigh(torch.cov(flat.T))
    keep = codec.geometry.channels
    std, directions = strength.flip(0)[:keep].sqrt(), directions.flip(1)[:, :keep]
    scaled = std ** (1 - WHITENING)
    unit = scaled.square().mean().sqrt()
    codec.basis.copy_(directions / std**WHITENING / unit)

    context = F.pad(codec.context(codec.encode(video)), (1, 1, 1, 1), mode="replicate")
    seen = F.unfold(context, 3).transpose(1, 2).flatten(0, 1).double()  # blocks x (32 channels x 3 x 3)
    seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    ridge = 1e-6 * len(seen) * torch.eye(seen.shape[1], dtype=seen.dtype)
    weights = torch.linalg.solve(seen.T @ seen + ridge, seen.T @ flat)
    codec.linear.weight.copy_(weights[:-1].T.reshape(codec.linear.weight.shape))
    codec.linear.bias.copy_(weights[-1])  # type: ignore[union-attr]


def train_refinement(codec: PortraitCodec, video: Tensor, steps: int, batch: int, lr: float, seed: int) -> None:
    """Fit the decoder's networks on pairs of latent frames; the latents do not change."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    weights = [*codec.deep.parameters(), *codec.refine.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.05)
    with torch.no_grad():
        latents = codec.encode(video)
    groups = torch.cat([video[:, :, :1].expand(-1, -1, 3, -1, -1), video], dim=2).split(4, dim=2)
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(video), batch))
        k = int(rng.integers(1, latents.shape[2]))
        context = torch.cat([latents[rows, :, k], latents[rows, :, k - 1]], dim=1)
        found = codec.decode_context(context + LATENT_NOISE * torch.randn_like(context))
        loss = reconstruction_loss(found, groups[k][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def psnr(codec: PortraitCodec, clips: Video) -> float:
    """Peak signal-to-noise ratio of the round trip, in dB."""
    found = to_pixels(codec.decode(codec.encode(to_signed(clips))))
    error = np.square(found.astype(np.float32) - clips.astype(np.float32)).mean()
    return float(10 * np.log10(255.0**2 / error))


def small(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights for a file: what latents depend on as it is, the decoder's in fp16."""
    return {name: value if name in ("mean", "basis") else value.half() for name, value in state.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("codec.safetensors"), help="the file to write")
    parser.add_argument("--start", type=Path, help="a codec whose linear parts are kept")
    parser.add_argument("--clips", type=int, default=1024, help="rendered training clips")
    parser.add_argument("--steps", type=int, default=5000, help="updates of the decoder's networks; 0 leaves them out")
    parser.add_argument("--batch", type=int, default=24, help="pairs of latent frames in a batch")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data order")
    a = parser.parse_args()
    video = to_signed(render_clips(0, a.clips))
    torch.manual_seed(a.seed)
    codec = load_portrait_codec(a.start).requires_grad_(True) if a.start else PortraitCodec()
    if not a.start:
        fit_linear(codec, video)
    if a.steps:
        train_refinement(codec, video, a.steps, a.batch, a.lr, a.seed)
    quality = psnr(codec, render_clips(HELD_OUT_SEED, 64))
    about = {"what": "W2SVD portrait codec", "held_out_psnr_db": f"{quality:.2f}"}
    write_safetensors(a.out, small(codec.state_dict()), about)
    print(f"held-out PSNR {quality:.2f} dB; wrote {a.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
