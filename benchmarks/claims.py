"""Which orders the papers report, and what of ours comes nearest to their numbers.

The numbers of the papers are of other models, data and metrics: they are there to compare orders, never sizes. W2SVD's
ablation is read off a figure (its dynamic .649 follows from the average), and of AVDM2 the table is known second-hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from rows import slug


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


TABLE, FIGURE = "W2SVD, Table 1", "W2SVD, ablation figure"


def _imaging(better: str, worse: str, theirs: str) -> list[Claim]:
    """VBench's imaging quality knows no data: sharpness is nearest to it in kind, Fréchet distance of frames in aim."""
    return [
        Claim(better, worse, "sharpness", FIGURE, theirs, higher=True),
        Claim(better, worse, "frechet_frame", FIGURE, theirs),
    ]


CLAIMS: tuple[Claim, ...] = (
    *(
        claim  # four steps of the teacher's own sampler, and the best that a search on the test finds
        for euler in ("teacher_4", "euler_4")
        for claim in (
            Claim("teacher", euler, "frechet_video", TABLE, "average .8107 > .6768"),
            Claim("teacher", euler, "motion", TABLE, "dynamic .700 > .045", higher=True),
            Claim("lcm", euler, "frechet_video", TABLE, "average .6915 > .6768"),
        )
    ),
    Claim("teacher", "lcm", "motion", TABLE, "dynamic .700 > .055", higher=True),
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
    *_imaging("w2s_75", "w2s_25", "imaging .717 > .571"),
    *(
        Claim(f"w2s_{slug(a)}", f"w2s_{slug(a)}_gt", "motion", FIGURE, f"dynamic {theirs}", higher=True)
        for a, theirs in ((0.0, ".759 > .068"), (0.25, ".767 > .038"), (0.5, ".649 > .058"))
    ),
    *(
        Claim(f"w2s_{slug(a)}", f"w2s_{slug(a)}_gt", "frechet_video", FIGURE, f"average {theirs}")
        for a, theirs in ((0.0, ".8063 > .7432"), (0.25, ".8218 > .7473"), (0.5, ".8155 > .7496"))
    ),
    Claim("w2s_75_gt", "w2s_75", "frechet_video", FIGURE, "average .7527 > .7423"),
    *_imaging("w2s_25_gt", "w2s_25", "imaging .710 > .571"),
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
    *(
        claim
        for euler in ("image_4", "image_euler")
        for claim in (
            Claim("image_28", euler, "frechet_video", TABLE, "average .8107 > .6768"),
            Claim("image_dmd2", euler, "frechet_video", TABLE, "average .8063 > .6768"),
        )
    ),
    Claim("image_w2s", "image_dmd2", "frechet_video", TABLE, "average .8219 > .8063"),
    Claim("image_w2s", "image_28", "frechet_video", TABLE, "average .8219 > .8107"),
    Claim("image_w2s", "image_best", "frechet_video", TABLE, "average .8219 > .8107"),
    Claim("image_28", "image_dmd2", "frechet_video", TABLE, "average .8107 > .8063"),
)
