"""One user's machine: a tiny pipeline of a kind of model, two clips, and the command line that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from kind import Kind, Tiny
from tiny_wan import FRAMES, PROMPTS, picture
from video_files import write

from w2svd_core.condition import FRAME_FIELDS

PARTS = ("path", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder")


class House:
    """What a user of a kind has.

    Args:
        root: the folder of all that is made.
        files: name single files instead of the pipeline's folder.
    """

    def __init__(self, kind: Kind, root: Path, files: bool = False, first_frame: bool | None = None) -> None:
        assert kind.tiny is not None
        self.kind, self.tiny, self.root = kind, kind.tiny(), root
        self.image = bool(kind.picture) if first_frame is None else first_frame
        model = self.tiny.model_of_files() if files else self.tiny.model()
        named = [(part, getattr(model, part)) for part in PARTS]
        self.model: list[Any] = [text for part, place in named for text in (f"--model.{part}", place)]
        self.model += ["--model.first_frame", str(self.image).lower(), "--model.precision", "fp32"]
        height, width = self.tiny.size
        self.data: list[Any] = ["--data.frames", FRAMES, "--data.height", height, "--data.width", width]
        self.data += ["--data.folder", root / "clips", "--data.cache", root / "cache", "--data.buckets", 1]
        self.small: list[Any] = [
            *("--student.rank", 2, "--critic.rank", 2, "--critic.warmup", 1, "--critic.updates", 2),
            *("--train.steps", 2, "--train.batch", 2, "--train.checkpoint_every", 1, "--train.tracker", "none"),
            *("--student.lr", 0.01, "--critic.lr", 0.01, "--teacher.steps", 2),
        ]
        self.run = root / "run"
        make_clips(root / "clips", self.tiny)

    @property
    def does_both(self) -> bool:
        """Whether the same weights make clips from text and from a first frame."""
        family: Any = self.kind.backbone
        takes = not set(family.facts(self.kind.new()).takes).isdisjoint(FRAME_FIELDS)
        return takes and family.words.config_at(Path(self.tiny.model().path)).get("task_type") != "t2v"

    @property
    def plain(self) -> list[Any]:
        """The kind's recipe, small."""
        return [self.kind.recipe, *self.model, *self.data, *self.small]

    def recipe(self) -> list[Any]:
        """The same after a first stage, which is the fine-tune of the papers, small."""
        text = f"base: {self.kind.finetune}\nname: small_finetune\nmethod: flow_matching\n"
        text += "student: {rank: 2, lr: 0.01}\ntrain: {steps: 2, batch: 2, checkpoint_every: 1, tracker: none}\n"
        text += "teacher: {steps: 2}\n"
        (self.root / "fine.yaml").write_text(text)
        return [self.kind.recipe, "--first", self.root / "fine.yaml", *self.model, *self.data, *self.small]

    @property
    def asked(self) -> list[Any]:
        """What `sample` is given beside its source."""
        image = self.root / "first.png"
        if self.image and not image.exists():
            picture(*self.tiny.size).save(image)
        return ["--prompt", PROMPTS[0], *(["--image", image] if self.image else [])]


def make_clips(folder: Path, tiny: Tiny) -> None:
    """Two clips, one of them longer and wider than wanted."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        coarse = rng.integers(0, 256, (FRAMES + number, 4, 4, 3), dtype=np.uint8)
        video = coarse.repeat(tiny.size[0] // 4, axis=1).repeat((1 + number) * tiny.size[1] // 4, axis=2)
        write(folder / f"{number}.mkv", video, "ffv1", "bgr0", rate=16)
        (folder / f"{number}.txt").write_text(PROMPTS[number])
