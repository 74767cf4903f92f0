"""A run that starts from another one, as Data-Forcing Distillation does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from door_parts import SIZE, write_teacher
from kind import Programs, Recipes

from w2svd_core import train
from w2svd_core.data.portraits import render_folder
from w2svd_core.errors import UserError
from w2svd_core.files import read_safetensors
from w2svd_core.lora_files import base_hash
from w2svd_core.run import RunFolder
from w2svd_core.starting import start_from


def small(out: Path, *more: str) -> list[str]:
    return [
        "portraits", "--train.steps", "2", "--train.batch", "2", "--data.clips", "64", "--evaluate.clips", "0",
        "--critic.warmup", "1", "--critic.updates", "1", "--student.rank", "4", "--critic.rank", "4",
        "--train.tracker", "none", "--out", str(out), *more,
    ]  # fmt: skip


def test_a_run_starts_from_the_student_and_critic_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train.main(small(first, "--student.ema", ".5")) == 0
    capsys.readouterr()
    still = ("--train.steps", "1", "--student.lr", "1e-30", "--critic.lr", "0", "--student.ema", ".5")
    assert train.main(small(second, "--from", str(first), *still)) == 0
    assert "starting from the student and critic of" in capsys.readouterr().err
    before, after = (RunFolder.open(place).newest_checkpoint() for place in (first, second))
    assert before is not None and after is not None
    old, new = read_safetensors(before)[0], read_safetensors(after)[0]
    same = [name for name in old if "/weight/" in name]
    assert same and all(torch.equal(old[name], new[name]) for name in same)
    assert old["student/count"].tolist() == [2, 0, 2] and new["student/count"].tolist() == [1, 0, 3]
    with pytest.raises(UserError, match="no critic of this kind and rank"):
        train.main(small(tmp_path / "third", "--start", str(first), "--critic.rank", "8"))
    lcm = ("--method", "consistency", "--student.sampler", "renoise")
    assert train.main(small(tmp_path / "lcm", *lcm)) == 0
    with pytest.raises(UserError, match=r"trained no critic; name the LoRA file of its student in student\.init"):
        train.main(small(tmp_path / "fifth", "--start", str(tmp_path / "lcm")))
    with pytest.raises(UserError, match="not a run folder"):
        train.main(small(tmp_path / "fourth", "--from", str(tmp_path)))
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {"first", "second", "lcm"}  # what was refused is no run, and its place is free for a better call


def test_other_steps_than_the_run_that_it_starts_from_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(small(tmp_path / "two", "--student.sigmas", "1,0.6,0")) == 0
    capsys.readouterr()
    assert train.main(small(tmp_path / "four", "--from", str(tmp_path / "two"), "--student.sampler", "euler",
                            "--matching.alpha_strong", "0.9")) == 0  # fmt: skip
    told = capsys.readouterr().err
    assert "warning: student.sigmas is 1,0.857143,0.666667,0.4,0, and the student of start" in told
    assert "knows 1,0.6,0; set it to that" in told and "student.sampler" not in told
    assert "matching.alpha_strong is 0.9, and the critic of start" in told


def test_a_start_on_another_base_is_refused(new_program: Programs, new_recipe: Recipes, tmp_path: Path) -> None:
    recipe = new_recipe()
    program = new_program(recipe)
    run = RunFolder.create(recipe, tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint yet"):
        start_from(program, str(run.path), "x")
    run.made_of = {"base": "of another", "data": "", "recipe": ""}
    run.save_checkpoint(1, program.tensors)
    with pytest.raises(UserError, match="another base"):
        start_from(program, str(run.path), base_hash(program.model.base_state()))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_start_from_a_run_of_two_stages_has_the_teacher_that_it_made(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render_folder(tmp_path / "clips", 4, 0, 5, 32, 32, 8.0)
    fine = "base: portraits_teacher\nname: fine\nmodel: {init: load, compile: false}\n"
    fine += f"student: {{kind: {kind}, rank: 2, lr: 0.02, ema: 0}}\ntrain: {{steps: 2, batch: 2, tracker: none}}\n"
    (tmp_path / "fine.yaml").write_text(fine)
    teacher = write_teacher(tmp_path / "teacher.safetensors", 0)
    own = (*SIZE, "--model.path", str(teacher), "--data.folder", str(tmp_path / "clips"), "--teacher.steps", "2")
    stages = (*own, "--first", str(tmp_path / "fine.yaml"))
    first = tmp_path / "first"
    assert train.main(small(first, *stages)) == 0
    capsys.readouterr()
    for name, given in (("again", stages), ("shorter", own)):
        on = small(tmp_path / name, *given, "--from", str(first), "--data_forcing.probability", ".5")
        assert train.main(on) == 0
        told = capsys.readouterr().err
        assert "first stage" not in told and "starting from the student and critic of" in told
        run = RunFolder.open(tmp_path / name)
        assert not (run.path / "teacher").exists() and run.origin()["base"] == RunFolder.open(first).origin()["base"]
        made = run.recipe().model
        assert any("first/teacher/student" in Path(place).as_posix() for place in (made.path, *made.loras))
        name_of = {"lora": "student_comfyui", "full": "student_model_comfyui"}[kind]
        assert f"the teacher is the one that was fine-tuned in start {first}" in told
        report = (run.path / "report.md").read_text(encoding="utf-8")
        assert f"first/teacher/student/{name_of}.safetensors" in report
        assert ("rename one of the two" in report) == (kind == "lora")
    with pytest.raises(
        UserError, match=rf"another base; set model\.path to \S*{teacher.name if kind == 'lora' else name_of}"
    ):
        train.main(
            small(
                tmp_path / "plain",
                *own,
                "--model.path",
                str(write_teacher(tmp_path / "b.safetensors", 1)),
                "--from",
                str(first),
            )
        )
    (tmp_path / "other.yaml").write_text(fine.replace("fine", "other"))
    with pytest.raises(UserError, match=r"would make another teacher than start .* clear first, or start"):
        train.main(small(tmp_path / "third", *own, "--first", str(tmp_path / "other.yaml"), "--from", str(first)))
    with pytest.raises(UserError, match=r"would make another teacher than start .* clear first, or start"):
        train.main(small(tmp_path / "other", *stages, "--from", str(tmp_path / "shorter")))
    assert not (tmp_path / "other").exists()


def test_another_precision_is_named(new_program: Programs, new_recipe: Recipes, tmp_path: Path) -> None:
    program = new_program(new_recipe())
    theirs = new_recipe({"model.precision": "bf16"})
    run = RunFolder.create(theirs, tmp_path / "run")
    run.made_of = {"base": "the same in bf16", "data": "", "recipe": ""}
    run.save_checkpoint(1, program.tensors)
    with pytest.raises(UserError, match=r"model\.precision bf16, and here it is fp32; set it to bf16"):
        start_from(program, str(run.path), "x")


def test_what_terms_train_goes_along_where_it_fits(new_program: Programs, new_recipe: Recipes, tmp_path: Path) -> None:
    settings = {"adversarial.weight": 0.5, "adversarial.depths": (0.5, 1.0), "adversarial.hidden": 8}
    program = new_program(new_recipe(settings))
    base = base_hash(program.model.base_state())
    heads = program.learners()["adversarial/heads"]
    with torch.no_grad():
        for parameter in heads.parameters.values():
            parameter.fill_(0.25)
    run = RunFolder.create(new_recipe(settings), tmp_path / "run")
    run.made_of = {"base": base, "data": "", "recipe": ""}
    run.save_checkpoint(1, program.tensors)
    again = new_program(new_recipe(settings))
    said = start_from(again, str(run.path), base)
    assert said == f"the student and critic and adversarial/heads of {run.path}"
    found = again.learners()["adversarial/heads"].parameters
    assert found and all(bool((parameter == 0.25).all()) for parameter in found.values())
    deeper = new_program(new_recipe(settings | {"adversarial.depths": (0.25, 1.0)}))
    assert start_from(deeper, str(run.path), base).endswith("; new: adversarial/heads")
    assert start_from(again, str(run.path), base, "of another image model").endswith("; new: adversarial/heads")
    still = settings | {"adversarial.hidden": 16, "adversarial.lr": 0.0, "start": str(run.path)}
    with pytest.raises(UserError, match=r"no adversarial/heads like this one: adversarial\.lr 0"):
        start_from(new_program(new_recipe(still)), str(run.path), base)
    wider = new_program(new_recipe(settings | {"adversarial.hidden": 16}))
    assert start_from(wider, str(run.path), base).endswith(f"critic of {run.path}; new: adversarial/heads")
    alone = new_program(new_recipe(settings | {"matching.weight": 0.0}))
    assert start_from(alone, str(run.path), base) == f"the student and adversarial/heads of {run.path}"
