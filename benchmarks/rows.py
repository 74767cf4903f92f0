"""The rows of the results table, and what the papers report for them.

The numbers of the papers are of other models, data and metrics: they stand beside ours to compare orders (claims.py),
never sizes. W2SVD is arXiv 2503.13319 (its Table 1 and the ablation figure), DFD 2606.18478 (Table 1), AVDM2
2412.05899, DMD2 2405.14867 (Table 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
FOUR = {"teacher.steps": "4"}  # of the teacher's own sampler: its shift and guidance
GRID = "alpha_weak against guidance"
BUDGETS = "Other training budgets"
SHARES = {"half": (0.5, (1.0, 2.0)), "double": (2.0, (0.5, 1.0))}  # of the budget, and what is tried of its rates
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
        tried: shares of that row's factor that are tried on validation; () = that factor alone.
        swept: False leaves its rates as they are.
        seeds: how many of the table's it is trained with, or a teacher sampled with, the first ones; None = all.
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
    tried: tuple[float, ...] = ()
    swept: bool = True
    seeds: int | None = None
    share: float = 1.0
    start_share: float | None = None
    winner: int = 0


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
        Row("teacher_4", EULER_4, TEACHER, settings=FOUR, kind="teacher", paper=papers[4]),
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
        Row("image_4", EULER_4, group, settings=own | FOUR, kind="teacher", paper=".6768", **like),
        Row("image_euler", f"{EULER_4}, best found", group, settings=own, kind="euler", **like),
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
        Row("motion_28", "teacher, 28 steps", group, kind="teacher", seeds=1, **like),
        Row("motion_4", EULER_4, group, settings=FOUR, kind="teacher", **like),
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
DFD: dict[str, Any] = {"recipe": "portraits_dfd", "share": 0.3, "paper": "DFD avg .906, diversity .128"}
FINISH: dict[str, Any] = DFD | {
    "recipe": "portraits_dfd_cure", "start": "dmd2_ill", "share": 1.0, "start_share": 1.0, "swept": False,
}  # fmt: skip
TRAINED: tuple[Row, ...] = (
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
    Row("dfd_ill", "DFD after that, at high noise", STUDENTS, **FINISH),
    Row(
        "dmd2_on", "the same training after that, without clips", STUDENTS,
        settings={"data_forcing.probability": "0"}, **FINISH | {"paper": ""},
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
)  # fmt: skip


def _budgets() -> list[Row]:
    """Half and twice the FLOPs: a longer training may want lower rates."""
    of = {row.name: row for row in TRAINED}
    return [
        replace(
            of[name], name=f"{name}_{end}", title=f"{of[name].title}, × {share:g}", group=BUDGETS, rates=name,
            tried=tried, share=share, paper="",
        )
        for name in ("lcm", "dmd2", "w2s")
        for end, (share, tried) in SHARES.items()
    ]  # fmt: skip


def _grid() -> list[Row]:
    """alpha_weak against guidance, on the student's own path: one seed, no sweep."""
    return [
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
    ]


ROWS: tuple[Row, ...] = (
    Row("data", "data against data", FLOORS, kind="data"),
    Row("codec", "data through mp4 and codec", FLOORS, kind="codec"),
    *_euler(),
    *TRAINED,
    *_ablation(),
    *_winners(),
    *_budgets(),
    *_image(),
    *_unets(),
    *_grid(),
)


SEEN = (  # what was not chosen blindly
    "After test rows had been seen, `portraits_long` was made shorter, the ablation was given DMD2's rates, and "
    "`portraits_image` its guidance; everything else was chosen on other portraits. The winner in other numbers of "
    "steps has the rates that were swept in its own."
)
