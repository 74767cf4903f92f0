"""What is wrong with clips of bad students, done on purpose and in known amounts.

The feature networks learn to read these amounts, so that their features see blur, noise, freezing, burnt
colours, flicker and jitter; the tests check that the Fréchet distances rise with them.

All functions take one clip `f c h w`, RGB in [0, 1], and an amount in [0, 1]; 0 gives the clip unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor

Corruption = Callable[[Tensor, float, torch.Generator], Tensor]

BLUR_SIGMA = 1.2  # px at full amount, at 32 px
NOISE_STD = 0.12
SATURATION_OCTAVES = 1.0  # chroma is doubled at full amount
BRIGHTNESS_OCTAVES = 0.5
FLICKER_STD = 0.12
JITTER_PIXELS = 1.5


def blur(clip: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Gaussian blur of each frame, sigma up to 1.2 px."""
    sigma = BLUR_SIGMA * amount
    if sigma < 0.1:
        return clip
    radius = int(3 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=clip.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    f, c, h, w = clip.shape
    planes = F.pad(clip.reshape(f * c, 1, h, w), (radius, radius, radius, radius), mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return planes.view(f, c, h, w)


def noise(clip: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Independent Gaussian noise on each value, standard deviation up to 0.12."""
    return (clip + NOISE_STD * amount * torch.randn(clip.shape, generator=generator)).clamp(0, 1)


def freeze(clip: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """The last part of the clip stands still; at amount 1 all of it."""
    moving = max(1, round(len(clip) * (1 - amount)))
    return clip[torch.arange(len(clip)).clamp(max=moving - 1)]


def damp(clip: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Motion is smeared: each frame is mixed with the mean of up to five neighbours in time."""
    f, c, h, w = clip.shape
    columns = F.pad(clip.reshape(f, -1).t().unsqueeze(1), (2, 2), mode="replicate")  # (c h w) 1 f+4
    mean = F.avg_pool1d(columns, 5, stride=1).squeeze(1).t().view(f, c, h, w)
    return torch.lerp(clip, mean, amount)


def saturate(clip: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Chroma times 2 ** amount around each pixel's grey; a negative amount (down to -1) fades it."""
    grey = clip.mean(1, keepdim=True)
    return (grey + (clip - grey) * 2 ** (SATURATION_OCTAVES * amount)).clamp(0, 1)


def brighten(clip: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """All values times 2 ** (amount / 2); a negative amount (down to -1) darkens."""
    return (clip * 2 ** (BRIGHTNESS_OCTAVES * amount)).clamp(0, 1)


def flicker(clip: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Each frame gets a gain of its own, log-normal, standard deviation up to 0.12."""
    gain = torch.exp(FLICKER_STD * amount * torch.randn(len(clip), 1, 1, 1, generator=generator))
    return (clip * gain).clamp(0, 1)


def jitter(clip: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Each frame is shifted by a random vector of its own, up to 1.5 px each way, with subpixel steps."""
    f = len(clip)
    shift = (torch.rand(f, 2, generator=generator) * 2 - 1) * JITTER_PIXELS * amount
    h, w = clip.shape[-2:]
    theta = torch.zeros(f, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = shift * 2 / torch.tensor([w, h])
    grid = F.affine_grid(theta, [f, 3, h, w], align_corners=False)
    return F.grid_sample(clip, grid, padding_mode="border", align_corners=False)


CORRUPTIONS: dict[str, Corruption] = {
    "blur": blur,
    "freeze": freeze,
    "damp": damp,
    "jitter": jitter,
    "saturate": saturate,
    "brighten": brighten,
    "flicker": flicker,
    "noise": noise,
}  # in the order in which they are applied
SIGNED = ("saturate", "brighten")
IN_A_FRAME = ("blur", "noise", "saturate", "brighten")  # those that a single frame shows
STRENGTHS = tuple(CORRUPTIONS)


def corrupt(
    clip: Tensor, generator: torch.Generator, share: float = 0.3, only: Collection[str] = STRENGTHS
) -> tuple[Tensor, Tensor]:
    """Apply each corruption (of those in `only`) with probability `share`, in a random amount.

    Returns:
        The clip `f c h w`, and the amounts (S,) in the order of `STRENGTHS`, 0 where one was not applied.
    """
    amounts = torch.zeros(len(STRENGTHS))
    draws = torch.rand(len(STRENGTHS), 2, generator=generator)
    for index, (name, function) in enumerate(CORRUPTIONS.items()):
        if name not in only or draws[index, 0] >= share:
            continue
        amount = float(draws[index, 1])
        amount = 2 * amount - 1 if name in SIGNED else amount
        clip = function(clip, amount, generator)
        amounts[index] = amount
    return clip, amounts
