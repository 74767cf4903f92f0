"""The rows of the results table, what the papers report for them, and which orders they claim.

The numbers of the papers are of other models, data and metrics: they stand beside ours to compare orders, never sizes.
W2SVD is arXiv 2503.13319 (its Table 1 and the ablation figure), DFD 2606.18478 (Table 1), AVDM2 2412.05899, DMD2
2405.14867 (Table 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["data", "codec", "teacher", "euler", "student", "model"]
ALPHAS = (0.0, 0.25, 0.5, 0.75)
WINNER_STEPS = (1, 2, 4, 7)
GRID_GUIDANCE = (1.0, 1.15, 1.5, 2.5)
LONG, IMAGE, UNETS = "portraits_long", "portraits_image", "portraits_avdm2_unets"
FLOORS, TEACHER, STUDENTS, ABLATION = "Floors", "Teacher", "Students", "Ablation of W2SVD (noised clips)"
WINNERS = "The best on validation, in other numbers of steps"
FROM_FRAME = "From a first frame"
EULER_4 = "teacher, 4 Euler steps"
GRID = "alpha_weak against guidance"
CLIPS_OF_UNETS = "AnimateDiff (clips of 9 frames, latents of single frames)"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: for `--rows`.
        title: for people.
        group: the heading that it stands under.
        recipe: the name of one; a row whose recipe is not there yet has "not run".
        settings: that go over the recipe's.
        kind: what is measured; "student" is trained, "model" is trained to be others' teacher and not measured.
        paper: what a paper reports of it.
        unit: the recipe whose own training is a budget of 1.
        teacher, image: the rows whose models take the places of `model.path` and `frame_matching.model`.
        start: the row whose student and critic this one starts from.
        rates: the row whose sweep of rates counts for this one, too, a variant of the same method; "" = its own.
        swept: False leaves its rates as they are.
        seeds: how many of the table's it is trained with, the first ones; None = all.
        share: of the budget that this row's own training gets.
        start_share: of the budget that `start` gets; None = the rest. With more the row has more FLOPs than others, as
            the finish of a row that is there already.
        winner: the best row on validation, trained to take so many steps; 0 = a row of its own.
    """

    name: str
    title: str
    group: str
    recipe: str = LONG
    settings: Mapping[str, str] = field(default_factory=dict)
    kind: Kind = "student"
    paper: str = ""
    unit: str = LONG
    teacher: str = ""
    image: str = ""
    start: str = ""
    rates: str = ""
    swept: bool = True
    seeds: int | None = None
    share: float = 1.0
    start_share: float | None = None
    winner: int = 0


@dataclass(frozen=True)
class Claim:
    """An order that a paper reports: `better` before `worse` in a metric of ours.

    Attributes:
        source: paper and place.
        theirs: its numbers.
        metric: ours that comes nearest to it.
        higher: whether more of it is meant.
        target: a row whose value is the aim (saturation as the data's); "" = higher or lower counts.
    """

    better: str
    worse: str
    metric: str
    source: str
    theirs: str
    higher: bool = False
    target: str = ""

    @property
    def page(self) -> str:
        """Which of docs/ says what is known of ours."""
        return "lcm.md" if self.better == "lcm" else f"{self.source.split(',')[0].lower()}.md"


def slug(value: float) -> str:
    """0.25 as 25, 1.0 as 100."""
    return f"{round(100 * value):02d}"


W2S_PAPER = {  # alpha_weak: (without, with the ground-truth term), from W2SVD's figure
    0.0: ("avg .8063, dynamic .759", "avg .7432, dynamic .068"),
    0.25: ("avg .8218, dynamic .767", "avg .7473, dynamic .038"),
    0.5: ("avg .8155, dynamic .649", "avg .7496, dynamic .058"),
    0.75: ("avg .7423, dynamic .006", "avg .7527, dynamic .048"),
}
TRUTH = "1"  # weight of the ground-truth term; the paper's could not be read, this one is ours


def _ablation() -> list[Row]:
    """All at the factor of DMD2's sweep, so that alpha_weak and the source of samples are all that differs.

    The first of them, swept by itself, liked twice as much; docs/w2svd.md says what became of the others there.
    """
    found = []
    for truth in (False, True):
        end = "_gt" if truth else ""
        for alpha in ALPHAS:
            settings = {"rollout.source": "noised_data", "matching.alpha_weak": f"{alpha:g}"}
            settings |= {"matching.ground_truth_weight": TRUTH} if truth else {}
            title = f"W2S, alpha_weak {alpha:g}" + (", ground truth" if truth else "")
            name, paper = f"w2s_{slug(alpha)}{end}", W2S_PAPER[alpha][truth]
            found.append(Row(name, title, ABLATION, settings=settings, paper=paper, rates="dmd2"))
    return found


def _winners() -> list[Row]:
    return [
        Row(f"winner_{n}", f"winner, {n} step{'' if n == 1 else 's'}", WINNERS, winner=n, paper=paper)
        for n, paper in zip(WINNER_STEPS, ("of W2SVD: avg .7448", "", "of W2SVD: avg .8219", ""), strict=True)
    ]


def _best(name: str, guidance: str, group: str, settings: Mapping[str, str], **like: Any) -> Row:
    """A teacher with the guidance of the least video Fréchet distance on 128 validation portraits.

    With 1.75, 2.5, 3.5, 5 `teacher` has 9.98, 9.28, 8.79, 8.99 there, `image_28` with 2.5, 3.5, 5, 7, 10 has 9.01,
    8.05, 7.23, 7.15, 8.13, and `motion_28` with 1.5, 3.5, 5 has 6.80, 7.21, 8.46: that one is best as it is. Flicker
    rises with guidance, diversity from text and identity fall.
    """
    title = f"teacher, 28 steps, guidance {guidance}"
    own = {**settings, "teacher.guidance_scale": guidance}
    return Row(f"{name}_best", title, group, settings=own, kind="teacher", **like)


def _euler() -> list[Row]:
    papers = {1: "W2SVD avg .6169", 4: "W2SVD avg .6768, dynamic .045"}
    few = [
        Row(
            f"euler_{n}",
            f"teacher, {n} Euler step{'' if n == 1 else 's'}, best found",
            TEACHER,
            settings={"student.sigmas": ",".join(f"{1 - i / n:.7g}" for i in range(n + 1))},
            kind="euler",
            paper=papers.get(n, ""),
        )
        for n in WINNER_STEPS
    ]
    return [
        Row(
            "teacher", "teacher, 28 steps", TEACHER, kind="teacher",
            paper="W2SVD avg .8107, dynamic .700; DFD avg .899, diversity .178",
        ),
        _best("teacher", "3.5", TEACHER, {}),
        *few,
    ]  # fmt: skip


def _image() -> list[Row]:
    group, own = FROM_FRAME, {"first": ""}
    like: dict[str, Any] = {"recipe": IMAGE, "unit": IMAGE, "teacher": "image_teacher"}
    return [
        Row("image_teacher", "the teacher that starts from a frame", group, "portraits_image_teacher", kind="model"),
        Row("image_codec", "data through mp4 and codec", group, settings=own, kind="codec", **like),
        Row("image_28", "teacher, 28 steps", group, settings=own, kind="teacher", paper="W2SVD avg .8107", **like),
        _best("image", "7", group, own, **like),
        Row(
            "image_euler",
            "teacher, 4 Euler steps, best found",
            group,
            settings=own,
            kind="euler",
            paper=".6768",
            **like,
        ),
        Row("image_dmd2", "DMD2", group, settings=own | {"matching.alpha_weak": "0"}, paper="avg .8063", **like),
        Row("image_w2s", "W2S, alpha_weak .25", group, settings=own, paper="W2SVD avg .8219", **like),
    ]


LCM_OF_UNETS = {  # as portraits_lcm, but for what timesteps of betas ask for: the grid's shift is ours
    "method": "consistency",
    "consistency.shift": "12",
    "consistency.skip": "5",
    "consistency.guidance_scale": "1.5",
    "student.lr": "1.5e-3",
    "student.beta1": "0.9",
    "student.sampler": "renoise",
    "adversarial.weight": "0",
    "frame_matching.weight": "0",
}


def _unets() -> list[Row]:
    group = CLIPS_OF_UNETS
    like: dict[str, Any] = {"recipe": UNETS, "teacher": "motion_unet"}
    return [
        Row("image_unet", "an image model of portraits", group, "portraits_image_unet", kind="model"),
        Row("motion_unet", "an AnimateDiff of portraits", group, "portraits_motion_unet", kind="model"),
        Row("motion_codec", "data through mp4 and codec", group, kind="codec", **like),
        Row("motion_28", "teacher, 28 steps", group, kind="teacher", **like),
        Row("motion_euler", f"{EULER_4}, best found", group, kind="euler", **like),
        Row("motion_lcm", "LCM", group, settings=LCM_OF_UNETS, paper="AnimateLCM FVD 1406, CLIPScore 28.4", **like),
        Row("motion_avdm2", "AVDM2", group, image="image_unet", paper="FVD 1271, CLIPScore 32.0", **like),
    ]


# What DMD2 warns of: guidance without a critic that keeps up. docs/dfd.md has what was tried, of this and of the cure.
ILL = {
    "matching.alpha_weak": "0",
    "matching.guidance_scale": "5",
    "critic.updates": "1",
    "critic.lr": "1e-4",
    "student.lr": "3e-4",
}
CURE = {
    "matching.alpha_weak": "0",
    "student.lr": "4e-4",
    "matching.guidance_scale": "2.25",
    "data_forcing.probability": "0.25",
    "data_forcing.lowest_sigma": "0.85",
}
DFD: dict[str, Any] = {"recipe": "portraits_dfd", "share": 0.3, "paper": "DFD avg .906, diversity .128"}
FINISH: dict[str, Any] = DFD | {"start": "dmd2_ill", "share": 1.0, "start_share": 1.0, "swept": False}
ROWS: tuple[Row, ...] = (
    Row("data", "data against data", FLOORS, kind="data"),
    Row("codec", "data through mp4 and codec", FLOORS, kind="codec"),
    *_euler(),
    Row("lcm", "LCM", STUDENTS, "portraits_lcm", paper="W2SVD avg .6915, dynamic .055; AnimateLCM FVD 1406"),
    Row("dmd2_full", "DMD2, full critic and student", STUDENTS, "portraits_dmd_full", paper="W2SVD avg .8063"),
    Row("dmd2", "DMD2, LoRA critic and student", STUDENTS, settings={"matching.alpha_weak": "0"}, paper="avg .8063"),
    Row("w2s", "W2S, alpha_weak .25, own path", STUDENTS, paper="W2SVD avg .8219, dynamic .768"),
    Row(
        "dmd2_125", "DMD2, LoRA critic and student, guidance 1.25 as the full ones", STUDENTS, rates="dmd2",
        settings={"matching.alpha_weak": "0", "matching.guidance_scale": "1.25"},
    ),
    Row("w2svd_paper", "W2SVD as its figure draws it", STUDENTS, "w2svd_paper", paper="avg .8219, dynamic .768"),
    Row("w2s_gan", "W2S with FastGen's adversarial term", STUDENTS, "portraits_gan"),
    Row("dmd2_gan", "DMD2 with its adversarial term", STUDENTS, "portraits_dmd2_gan", paper="FID 19.3, without 26.9"),
    Row("dfd_w2s", "DFD after W2S", STUDENTS, **DFD, start="w2s"),
    Row(
        "dfd_w2s_score", "DFD after W2S, in score space", STUDENTS, rates="dfd_w2s",
        settings={"data_forcing.space": "score"}, **DFD, start="w2s",
    ),
    Row("dmd2_ill", "DMD2 made ill: guidance 5, one update of a slow critic", STUDENTS, settings=ILL, swept=False),
    Row("dfd_ill", "DFD after that, at high noise", STUDENTS, settings=CURE, **FINISH),
    Row(
        "dmd2_on", "the same training after that, without clips", STUDENTS,
        settings=CURE | {"data_forcing.probability": "0"}, **FINISH | {"paper": ""},
    ),
    Row("dfd_dmd2", "DFD after DMD2", STUDENTS, settings={"matching.alpha_weak": "0"}, **DFD, start="dmd2"),
    Row("avdm2", "AVDM2, frames decoded and judged by the teacher", STUDENTS, "portraits_avdm2"),
    Row(
        "avdm2_latent", "AVDM2, the first latent frame judged by the teacher", STUDENTS, "portraits_avdm2",
        rates="avdm2", settings={"frame_matching.way": "latent"},
    ),
    Row(
        "avdm2_image", "AVDM2, frames decoded and judged by an image UNet", STUDENTS, "portraits_avdm2",
        rates="avdm2", image="image_unet",
        settings={"frame_matching.score_min": "0.133", "frame_matching.score_max": "0.997"},  # .02 to .98 of its own T
    ),
    *_ablation(),
    *_winners(),
    *_image(),
    *_unets(),
)  # fmt: skip


def grid() -> tuple[Row, ...]:
    """alpha_weak against guidance, on the student's own path: one seed, no sweep."""
    return tuple(
        Row(
            f"grid_{slug(alpha)}_{slug(guidance)}",
            f"alpha_weak {alpha:g}, guidance {guidance:g}",
            GRID,
            settings={"matching.alpha_weak": f"{alpha:g}", "matching.guidance_scale": f"{guidance:g}"},
            swept=False,
            seeds=1,
        )
        for alpha in ALPHAS
        for guidance in GRID_GUIDANCE
    )


SEEN = (  # what was not chosen blindly
    "After test rows had been seen, `portraits_long` was made shorter, the ablation was given DMD2's rates, and "
    "`portraits_image` its guidance; everything else was chosen on other portraits. The winner in other numbers of "
    "steps has the rates that were swept in its own."
)
TABLE, FIGURE = "W2SVD, Table 1", "W2SVD, ablation figure"
CLAIMS: tuple[Claim, ...] = (
    Claim("teacher", "euler_4", "frechet_video", TABLE, "average .8107 > .6768"),
    Claim("lcm", "euler_4", "frechet_video", TABLE, "average .6915 > .6768"),
    Claim("dmd2_full", "lcm", "frechet_video", TABLE, "average .8063 > .6915"),
    Claim("dmd2_full", "lcm", "motion", TABLE, "dynamic .759 > .055", higher=True),
    Claim("w2svd_paper", "dmd2_full", "frechet_video", TABLE, "average .8219 > .8063"),
    Claim("teacher", "dmd2_full", "frechet_video", TABLE, "average .8107 > .8063"),
    Claim("w2svd_paper", "teacher", "frechet_video", TABLE, "average .8219 > .8107"),
    Claim("w2svd_paper", "teacher_best", "frechet_video", TABLE, "average .8219 > .8107"),
    Claim("w2s", "dmd2", "frechet_video", TABLE, "average .8219 > .8063"),
    Claim("w2s_25", "w2s_00", "frechet_video", FIGURE, "average .8218 > .8063"),
    Claim("w2s_25", "w2s_50", "frechet_video", FIGURE, "average .8218 > .8155"),
    Claim("w2s_50", "w2s_75", "frechet_video", FIGURE, "average .8155 > .7423"),
    Claim("w2s_25", "w2s_75", "motion", FIGURE, "dynamic .767 > .006", higher=True),
    Claim("w2s_75", "w2s_25", "frechet_frame", FIGURE, "imaging .717 > .571"),
    *(
        Claim(f"w2s_{slug(a)}", f"w2s_{slug(a)}_gt", "motion", FIGURE, f"dynamic {theirs}", higher=True)
        for a, theirs in ((0.0, ".759 > .068"), (0.25, ".767 > .038"), (0.5, ".649 > .058"))
    ),
    Claim("w2s_25_gt", "w2s_25", "frechet_frame", FIGURE, "imaging .710 > .571"),
    Claim("w2s_75_gt", "w2s_75", "motion", FIGURE, "dynamic .048 > .006", higher=True),
    Claim("winner_4", "winner_1", "frechet_video", TABLE, "average .8219 > .7448 (of W2SVD)"),
    Claim("winner_1", "euler_1", "frechet_video", TABLE, "average .7448 > .6169 (of W2SVD)"),
    Claim("teacher", "dmd2", "diversity", "DFD, Table 1", "CLIP diversity .178 > .120", higher=True),
    Claim("dfd_dmd2", "dmd2", "diversity", "DFD, Table 1", "CLIP diversity .128 > .120", higher=True),
    Claim("dfd_dmd2", "dmd2", "saturation", "DFD, section 1", "nearer to the data", target="data"),
    Claim("dfd_dmd2", "dmd2", "frechet_video", "DFD, Table 1", "average .906 > .901"),
    Claim("dfd_w2s", "w2s", "diversity", "DFD, Table 1", "CLIP diversity .128 > .120 (after DMD2)", higher=True),
    Claim("dfd_w2s", "w2s", "frechet_video", "DFD, Table 1", "average .906 > .901 (after DMD2)"),
    Claim("dfd_w2s_score", "w2s", "diversity", "DFD, Table 1", "CLIP diversity .128 > .120 (after DMD2)", higher=True),
    Claim("teacher", "dmd2_ill", "diversity", "DFD, Table 1", "CLIP diversity .178 > .120", higher=True),
    *(
        claim  # against what it starts from, and against the rest of its cure: a critic that keeps up, less guidance
        for sick in ("dmd2_ill", "dmd2_on")
        for claim in (
            Claim("dfd_ill", sick, "diversity", "DFD, Table 1", "CLIP diversity .128 > .120", higher=True),
            Claim("dfd_ill", sick, "saturation", "DFD, section 1", "nearer to the data", target="data"),
            Claim("dfd_ill", sick, "frechet_video", "DFD, Table 1", "average .906 > .901"),
        )
    ),
    *(
        claim
        for ours, lcm in (("avdm2", "lcm"), ("avdm2_image", "lcm"), ("motion_avdm2", "motion_lcm"))
        for claim in (
            Claim(ours, lcm, "frechet_video", "AVDM2, table", "FVD 1271 < 1406 (AnimateLCM)"),
            Claim(ours, lcm, "adherence", "AVDM2, table", "CLIPScore 32.0 > 28.4 (AnimateLCM)", higher=True),
        )
    ),
    Claim("avdm2", "w2s_gan", "adherence", "AVDM2, text", "CLIPScore 32.0 > 30.6 (clips scored)", higher=True),
    Claim("dmd2_gan", "dmd2", "frechet_frame", "DMD2, Table 4", "FID 19.3 < 26.9"),
    Claim("image_28", "image_euler", "frechet_video", TABLE, "average .8107 > .6768"),
    Claim("image_dmd2", "image_euler", "frechet_video", TABLE, "average .8063 > .6768"),
    Claim("image_w2s", "image_dmd2", "frechet_video", TABLE, "average .8219 > .8063"),
    Claim("image_w2s", "image_28", "frechet_video", TABLE, "average .8219 > .8107"),
    Claim("image_w2s", "image_best", "frechet_video", TABLE, "average .8219 > .8107"),
    Claim("image_28", "image_dmd2", "frechet_video", TABLE, "average .8107 > .8063"),
)
