"""What has to fit together in a recipe, beyond each setting's range; a fault is a ValueError."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .objectives import clips_for, terms_on

if TYPE_CHECKING:
    from .settings import Recipe


def check_student(recipe: Recipe) -> None:
    """The student learns."""
    if not recipe.student.lr:
        raise ValueError("student.lr 0 trains nothing; raise it")


def check_named(recipe: Recipe) -> None:
    """What names a model or clips is not empty, which an empty path would take for the working folder."""
    for key, place in (("model.path", recipe.model.path), ("data.folder", recipe.data.folder)):
        if not place:
            raise ValueError(f"{key} is empty; name a place, or leave it out")


def check_prompts(recipe: Recipe) -> None:
    """Prompts alone are enough for what a recipe learns from and is measured by."""
    measured = "evaluate.clips" if recipe.evaluate.clips and recipe.data.folder != "portraits" else ""
    if key := clips_for(recipe) or measured:
        raise ValueError(f"{key} needs clips, and data.prompts gives prompts alone; clear one of the two")


def check_distillation(recipe: Recipe) -> None:
    """Student, critic and the two scores leave something to learn."""
    if recipe.matching.ground_truth_weight and recipe.rollout.source == "backward_simulation":
        raise ValueError(
            "matching.ground_truth_weight needs the clip that a sample was noised from, which "
            "rollout.source backward_simulation has not; set rollout.source to noised_data, or the weight to 0"
        )
    if recipe.matching.ground_truth_weight and not recipe.matching.weight:
        raise ValueError("matching.weight 0 is the ground-truth term's, too; set it to 1, or that term's to 0")
    check_teacher(recipe)
    if not recipe.matching.weight:
        return  # without a critic
    if recipe.student.kind == recipe.critic.kind == "lora" and recipe.critic.rank < recipe.student.rank:
        raise ValueError(
            f"critic.rank {recipe.critic.rank} is below student.rank {recipe.student.rank}, so the critic "
            f"cannot follow the student; set critic.rank to at least {recipe.student.rank}"
        )
    weak, strong = recipe.matching.alpha_weak, recipe.matching.alpha_strong
    if recipe.critic.kind == "full" and (weak != 0 or strong != 1):
        raise ValueError(
            f"critic.kind full has no adapter whose strength matching.alpha_weak {weak:g} and alpha_strong "
            f"{strong:g} could set; set them to 0 and 1, or critic.kind to lora"
        )
    if not _scores_may_differ(recipe) and not recipe.matching.ground_truth_weight and not terms_on(recipe):
        raise ValueError(
            "critic.lr 0 leaves the critic as the teacher that it begins as, so that fake and real score never differ "
            "and the student learns nothing; raise it"
        )
    if weak > strong or not strong or (weak == strong and recipe.matching.guidance_scale == 1):
        raise ValueError(
            f"matching.alpha_weak {weak:g} must be below matching.alpha_strong {strong:g}, or critic or student "
            "learns nothing or the reverse; lower matching.alpha_weak, or set matching.alpha_strong to 1"
        )


def _scores_may_differ(recipe: Recipe) -> bool:
    return bool(recipe.critic.lr or recipe.start or recipe.matching.guidance_scale != 1)


def check_teacher(recipe: Recipe) -> None:
    """There is a teacher to distil."""
    if recipe.model.init != "load":
        raise ValueError(
            f"model.init {recipe.model.init} leaves method {recipe.method} without a teacher; "
            "set model.init to load, or method to flow_matching"
        )
