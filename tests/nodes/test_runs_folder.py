"""When a run's folder has what a node hands out, and when the training has to go on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

Modules = Callable[[str], ModuleType]


def test_a_student_of_another_recipe_is_not_the_finished_one(module_of: Modules, tmp_path: Path) -> None:
    """A longer training that was cancelled leaves the student of the shorter one, and previews of its own."""
    runs, students = module_of("nodes.runs"), module_of("w2svd_core.student_files")
    config = module_of("w2svd_core.config")
    made = [
        tmp_path / "recipe.yaml",
        tmp_path / students.FOLDER / students.NATIVE,
        tmp_path / "samples" / "student-0.mp4",
    ]
    for second, path in enumerate(made):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        os.utime(path, (1000 + second,) * 2)
    assert runs.is_finished(tmp_path) and runs.samples_of(tmp_path) == made[2:]
    runs.write_recipe(tmp_path, config.load_recipe("portraits", {"train.steps": 60}))
    os.utime(made[2])
    assert not runs.is_finished(tmp_path)
    os.utime(made[1])
    os.utime(made[2], (1002, 1002))  # its own clips could not be made
    assert not runs.is_finished(tmp_path) and not runs.samples_of(tmp_path)
    os.utime(made[2])
    assert runs.is_finished(tmp_path)
