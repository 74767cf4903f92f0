"""The networks that published numbers are made with, where the user has their files: FID, FVD, CLIP.

    networks = RealNetworks.load(fid="inception-2015-12-05.pt", fvd="i3d_torchscript.pt", clip="clip-vit-large-patch14")
    against = networks.statistics(data_clips)
    numbers = networks.measure(clips, captions, against)

They know everything that people film, so these numbers exist for the user's own clips, too. To compare an FID or FVD
with a published one, everything must be alike: the file, the data, the number of clips, their frames, rate and size.
Here FID reads every fourth frame, FVD whole clips. Few samples are taken as they are (`FeatureStats.of`, singular):
with fewer samples than features (2048, 400) the numbers are far too high and compare rows of one table only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .clip_text import METRIC as CLIP_TEXT
from .clip_text import ClipText, check_clip, load_clip
from .frechet import FeatureStats, frechet_distance
from .networks import Videos
from .torchscript import I3D, INCEPTION, Progress, ScriptedNetwork, check_torchscript, load_torchscript, silent

REAL_UNITS: dict[str, str] = {
    INCEPTION.metric: "Fréchet distance in InceptionV3 features of every fourth frame, lower is better",
    I3D.metric: "Fréchet distance in I3D features of whole clips, lower is better",
    CLIP_TEXT: "cosine of caption and every fourth frame in CLIP, -1 to 1, higher is better",
}
REAL_TITLES: dict[str, str] = {
    INCEPTION.metric: f"FID ({INCEPTION.network})",
    I3D.metric: f"FVD ({I3D.network})",
    CLIP_TEXT: "CLIP text",
}


@dataclass(frozen=True)
class RealNetworks:
    """The networks that the user has; none is fine.

    Attributes:
        scripted: for Fréchet distances.
        clip: for captions.
        progress: told while clips are read.
    """

    scripted: tuple[ScriptedNetwork, ...] = ()
    clip: ClipText | None = None
    progress: Progress = field(default=silent, repr=False)

    @classmethod
    def load(
        cls, fid: str = "", fvd: str = "", clip: str = "", *, device: torch.device | None = None,
        progress: Progress = silent,
    ) -> RealNetworks:  # fmt: skip
        """Read what is named; an empty path is none.

        Args:
            fid: InceptionV3 as TorchScript.
            fvd: I3D as TorchScript.
            clip: folder of a CLIP model.
            device: the first GPU where there is one, when None.

        Raises:
            UserError: a file is missing, broken, pickled, or of another network.
        """
        place = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        named = [(Path(path), kind) for path, kind in ((fid, INCEPTION), (fvd, I3D)) if path]
        check_real_networks(fid, fvd, clip)  # the last is looked at before the first is read
        scripted = tuple(load_torchscript(path, kind, place) for path, kind in named)
        return cls(scripted, load_clip(Path(clip), place) if clip else None, progress)

    def files(self) -> dict[str, str]:
        """What each number is made with: {metric: file and hash}."""
        found = {network.convention.metric: network.words() for network in self.scripted}
        return found | ({CLIP_TEXT: self.clip.words()} if self.clip else {})

    def statistics(self, videos: Videos) -> dict[str, FeatureStats]:
        """Of data clips uint8 (N, F, H, W, 3), at least 2: {metric: statistics}, what `measure` compares with.

        Raises:
            UserError: not clips, one clip, or clips that a network can't read.
        """
        return {
            network.convention.metric: FeatureStats.of(network.features(videos, self.progress), singular=True)
            for network in self.scripted
        }

    def measure(self, videos: Videos, captions: Sequence[str], against: Mapping[str, FeatureStats]) -> dict[str, float]:
        """Numbers of clips uint8 (N, F, H, W, 3) with their captions; Fréchet distances only for what is in `against`.

        Raises:
            UserError: not clips, captions that don't fit, or clips that a network can't read.
        """
        numbers: dict[str, float] = {}
        for network in self.scripted:
            data = against.get(network.convention.metric)
            if data is not None:
                own = FeatureStats.of(network.features(videos, self.progress), singular=True)
                numbers[network.convention.metric] = frechet_distance(own, data)
        if self.clip:
            numbers[CLIP_TEXT] = self.clip.score(videos, captions, self.progress)
        return numbers


def check_real_networks(fid: str = "", fvd: str = "", clip: str = "") -> None:
    """Look at the named files without reading them: for before a training whose last act is their use.

    Raises:
        UserError: a file is missing, pickled, cut off, or of another kind.
    """
    for path, kind in ((fid, INCEPTION), (fvd, I3D)):
        if path:
            check_torchscript(Path(path), kind)
    if clip:
        check_clip(Path(clip))
