"""InceptionV3 for FID and I3D for FVD, as the TorchScript files that people have; nothing is downloaded.

- FID: `inception-2015-12-05.pt`, published with StyleGAN2-ADA: the original TensorFlow network, translated. It takes
  frames uint8 (N, 3, H, W) and `return_features=True`, resizes to 299 x 299 itself and gives 2048 values.
- FVD: `i3d_torchscript.pt`, published with StyleGAN-V: the TensorFlow Hub network of the first FVD code, translated. It
  takes clips uint8 (N, 3, F, H, W) with `rescale=True, resize=True, return_features=True`, brings values and size
  (224 x 224) to what it wants itself and gives 400 values, the logits. It wants some ten frames.

Both conventions are those of the projects' own evaluation code (`metric_utils.py` of StyleGAN2-ADA and of StyleGAN-V),
read and not run here: the files themselves were never at hand.

A TorchScript file is a program. Its loader refuses pickle's arbitrary calls, but the program can read and write files
when it runs: name only files from where you trust. A pickled checkpoint is refused before it is opened.
"""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, out_of_memory
from .networks import FRAME_STRIDE, Videos, check_videos

Progress = Callable[[str, int, int], None]

FRAMES_AT_A_TIME = 64  # in a batch of either network


def silent(what: str, done: int, count: int) -> None:
    """A progress that tells nobody."""


@dataclass(frozen=True)
class Convention:
    """How a known network is called, and by what file and setting people know it.

    Attributes:
        metric: key of its number.
        setting: the recipe's key.
        network: its name.
        file: the file as it was published.
        switches: arguments of its forward that are all set to True.
        width: values that it gives.
        reads: single frames or whole clips.
    """

    metric: str
    setting: str
    network: str
    file: str
    switches: tuple[str, ...]
    width: int
    reads: Literal["frames", "clips"]


INCEPTION = Convention(
    "fid_inception", "evaluate.fid_network", "InceptionV3", "inception-2015-12-05.pt of StyleGAN2-ADA",
    ("return_features",), 2048, "frames",
)  # fmt: skip
I3D = Convention(
    "fvd_i3d", "evaluate.fvd_network", "I3D", "i3d_torchscript.pt of StyleGAN-V",
    ("rescale", "resize", "return_features"), 400, "clips",
)  # fmt: skip


@dataclass(frozen=True)
class ScriptedNetwork:
    """A feature network from a TorchScript file, frozen, on a device."""

    convention: Convention
    path: Path
    digest: str
    module: Any
    device: torch.device

    def words(self) -> str:
        """The file's name and the beginning of its SHA-256."""
        return f"{self.path.name} (SHA-256 {self.digest[:12]})"

    def features(self, videos: Videos, progress: Progress = silent) -> Tensor:
        """Features float64 (M, D) of clips uint8 (N, F, H, W, 3); of every fourth frame where frames are read.

        Raises:
            UserError: not clips, or the network can't read them.
        """
        check_videos(videos)
        frames = self.convention.reads == "frames"
        n, f = videos[:, ::FRAME_STRIDE].shape[:2] if frames else videos.shape[:2]
        at_a_time = max(1, FRAMES_AT_A_TIME // f)
        parts = []
        for start in range(0, n, at_a_time):
            some = videos[start : start + at_a_time]
            some = some[:, ::FRAME_STRIDE].reshape(-1, *some.shape[2:]) if frames else some
            x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(some, -1, 1)))  # channels after the batch
            parts.append(self._call(x.to(self.device)))
            progress(f"reading with {self.convention.network}", min(start + at_a_time, n), n)
        return torch.cat(parts)

    @torch.inference_mode()
    def _call(self, x: Tensor) -> Tensor:
        c = self.convention
        try:
            y = self.module(x, **dict.fromkeys(c.switches, True))
        except (RuntimeError, TypeError, torch.jit.Error) as error:
            if out_of_memory(error):
                raise
            size = "x".join(str(side) for side in x.shape[1:])
            raise UserError(
                f"{self.path} ({c.setting}) can't read {c.reads} of {size} values ({_last_line(error)}); "
                f"check that it is the {c.file}, and that clips are long and large enough for it"
            ) from error
        shape = tuple(y.shape) if isinstance(y, Tensor) else None
        if shape is None or len(shape) < 2 or shape[0] != len(x) or math.prod(shape[1:]) != c.width:
            found = f"something of shape {shape}" if shape is not None else "no tensor"
            raise UserError(
                f"{self.path} ({c.setting}) gives {found} for {len(x)} {c.reads}, where {c.network} gives {c.width} "
                f"values for each; name the {c.file}"
            )
        features: Tensor = y.flatten(1).double().cpu()
        return features


def check_torchscript(path: Path, convention: Convention) -> None:
    """Tell a TorchScript file from what people mistake for one, without reading more than its list of contents.

    Raises:
        UserError: missing, not readable, pickled, broken, or something else.
    """
    c, instead = convention, f"name the {convention.file}, or leave {convention.setting} empty"
    if not path.is_file():
        raise UserError(f"{path} ({c.setting}) is not there; {instead}")
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
        names = zipfile.ZipFile(path).namelist() if head[:2] == b"PK" else []
    except OSError as error:
        raise UserError(f"{path} ({c.setting}) can't be read: {error.strerror}; check its permissions") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} ({c.setting}) is cut off or broken; copy or download it again") from error
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return
    if head[:1] == b"\x80" or "data.pkl" in inside:
        raise UserError(f"{path} ({c.setting}) is a pickled file, which can run code when it is read; {instead}")
    if head[8:9] == b"{":
        raise UserError(f"{path} ({c.setting}) is safetensors: weights without their network; {instead}")
    raise UserError(f"{path} ({c.setting}) is not a TorchScript file; {instead}")


def load_torchscript(path: Path, convention: Convention, device: torch.device) -> ScriptedNetwork:
    """Read a network and see that it is called as the convention says.

    Raises:
        UserError: not a TorchScript file, broken, or another network.
    """
    check_torchscript(path, convention)
    c = convention
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the format is old, and so are the files
            module = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, torch.jit.Error) as error:
        if out_of_memory(error):
            raise
        raise UserError(
            f"{path} ({c.setting}) can't be loaded ({_last_line(error)}); copy or download it again"
        ) from error
    known = [argument.name for argument in module.forward.schema.arguments]
    lacking = [name for name in c.switches if name not in known]
    if lacking:
        raise UserError(
            f"{path} ({c.setting}) takes {', '.join(known[1:]) or 'nothing'}, but {c.network} also takes "
            f"{', '.join(lacking)}; name the {c.file}"
        )
    return ScriptedNetwork(c, path, file_hash(path), module, device)


def file_hash(*paths: Path) -> str:
    """SHA-256 of the bytes of files, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _last_line(error: Exception) -> str:
    """What is said last, where TorchScript tells its own trace first; at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
