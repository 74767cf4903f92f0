"""A teacher that is fine-tuned first and then distilled: two runs, the first in a folder of the second.

This is the papers' own order (W2SVD, arXiv 2503.13319: a teacher fine-tuned for portraits comes before its
distillation). Each of the two is an ordinary run: it has its own recipe, checkpoints and student, and is of use alone.
"""

from __future__ import annotations

from pathlib import Path

from .config import load_recipe, recipe_from
from .errors import UserError
from .places import ENCODERS
from .settings import Model, Recipe
from .student_files import FOLDER, FULL_NATIVE, NATIVE

FIRST = "teacher"  # the fine-tune's run folder, inside the distillation's


def first_stage(recipe: Recipe) -> Recipe:
    """The fine-tune that `first` names, on this recipe's model, clips and seed; how it calculates stays its own.

    Raises:
        UserError: it is no fine-tune, or does not fit this recipe's model and clips.
    """
    fine = load_recipe(recipe.first)
    if fine.method != "flow_matching" or fine.first:
        raise UserError(f"first names {recipe.first}, which is no fine-tune; name a recipe of method flow_matching")
    own = fine.model
    calculating = {
        "init": own.init,
        "precision": own.precision,
        "compile": own.compile,
        "gradient_checkpointing": own.gradient_checkpointing,
    }
    changes = {
        "model": recipe.model.model_copy(update=calculating),
        "data": recipe.data,
        "seed": recipe.seed,
        "evaluate": recipe.evaluate.model_copy(update={"clips": 0}),
    }
    return recipe_from(fine.model_copy(update=changes), f"of {recipe.first} on the model and clips of {recipe.name}")


def is_trained(run: Path) -> bool:
    """Whether the first stage of a run has made its teacher, whole."""
    return any((run / FIRST / FOLDER / name).is_file() for name in (NATIVE, FULL_NATIVE))


def with_trained_teacher(recipe: Recipe, run: Path) -> Recipe:
    """The recipe of a run as its second stage needs it: what the first stage made is the teacher.

    An adapter joins `model.loras`; a full copy takes the place of `model.path`, with the adapters that it began with
    inside. Nothing comes first in the recipe that is returned; one without a first stage comes back as it is.

    Raises:
        UserError: the first stage has not been finished.
    """
    if not recipe.first:
        return recipe
    made = run / FIRST / FOLDER
    if (made / NATIVE).is_file():
        model = recipe.model.model_copy(update={"loras": (*recipe.model.loras, str(made / NATIVE))})
    elif (made / FULL_NATIVE).is_file():
        model = _with_encoders_of_its_own(recipe.model)
        model = model.model_copy(update={"path": str(made / FULL_NATIVE), "loras": ()})
    else:
        raise UserError(f"{run / FIRST} has no fine-tuned teacher yet; finish it with --resume {run}")
    return recipe.model_copy(update={"model": model, "first": ""})


def _with_encoders_of_its_own(model: Model) -> Model:
    """The model with its encoders named where they lie now, so that another path does not lose them."""
    return model.model_copy(update={name: getattr(model, name) or model.path for name in ENCODERS})
