"""Recipes, the command line and the help: each fault is one sentence that names key, value and place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from config_parts import fault
from pydantic import ValidationError

from w2svd_core import config
from w2svd_core.config import (
    Parser,
    Recipe,
    add_arguments,
    all_settings,
    check_recipe,
    load_recipe,
    parse_arguments,
    recipe_names,
    recipe_to_yaml,
    settings_help,
)
from w2svd_core.errors import UserError
from w2svd_core.settings import Section

RECIPES = (
    *("animatediff_avdm2", "hunyuan_video_dfd", "wan_dfd", "wan_gan"),
    *("cosmos_i2v_2b", "cosmos_i2v_2b_dfd", "cosmos_t2v_2b", "hunyuan_video15_i2v", "hunyuan_video15_t2v"),
    *(
        "hunyuan_video_finetune",
        "hunyuan_video_gan",
        "hunyuan_video_i2v",
        "hunyuan_video_i2v_concat",
        "hunyuan_video_portraits",
    ),
    *("hunyuan_video_t2v",),
    *("portraits", "portraits_avdm2", "portraits_avdm2_unets", "portraits_dfd", "portraits_dfd_cure", "portraits_dmd"),
    *("portraits_dmd2_gan", "portraits_dmd_full"),
    *("portraits_gan", "portraits_image", "portraits_image_teacher", "portraits_image_unet", "portraits_lcm"),
    *("portraits_long", "portraits_motion_unet", "portraits_teacher", "w2svd_paper"),
    *("wan_finetune", "wan_i2v_14b", "wan_portraits", "wan_t2v_14b", "wan_t2v_1_3b", "wan_ti2v_5b"),
)


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def parse(*arguments: str) -> dict[str, str]:
    parser = Parser(prog="door")
    parser.add_argument("recipe", nargs="?", default="portraits")
    parser.add_argument("--out")
    add_arguments(parser)
    return parse_arguments(parser, arguments)[1]


# ---- recipes


def test_the_recipes_are_there() -> None:
    assert set(RECIPES) <= set(recipe_names())  # a new paper adds its own
    assert recipe_names() == tuple(sorted(recipe_names()))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_for_and_round_trips(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert (config.RECIPES / f"{name}.yaml").read_text().startswith("# ")
    text = recipe_to_yaml(recipe)
    assert load_recipe(write(tmp_path, text)) == recipe
    written = yaml.safe_load(text)
    flat = {f"{s}.{k}" for s, part in written.items() if isinstance(part, dict) for k in part}
    assert flat | {k for k, part in written.items() if not isinstance(part, dict)} == set(all_settings())


def test_what_the_recipes_stand_for() -> None:
    assert load_recipe("portraits").matching.alpha_weak == 0.25
    assert list(load_recipe("portraits").student.sigmas) == [1, 0.857143, 0.666667, 0.4, 0]
    dmd = load_recipe("portraits_dmd")
    assert dmd.matching.alpha_weak == 0
    same = load_recipe("portraits", {"matching.alpha_weak": "0", "name": "portraits_dmd"})
    assert dmd == same
    paper = load_recipe("w2svd_paper")
    assert (paper.rollout.source, paper.student.sampler, paper.student.kind) == (
        "noised_data",
        "euler",
        "full",
    )
    teacher = load_recipe("portraits_teacher")
    assert (teacher.method, teacher.model.init, teacher.student.kind) == ("flow_matching", "random", "full")


def test_a_recipe_is_frozen() -> None:
    recipe = load_recipe("portraits")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.steps = 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3


def test_yaml_is_read_by_the_type_of_the_setting(tmp_path: Path) -> None:
    text = "name: no\nseed: 1_000\nstudent:\n  lr: 1e-5\n  ema: 0\nmatching: {batched_scores: off}\nteacher:\n"
    recipe = load_recipe(write(tmp_path, text))
    assert (recipe.name, recipe.seed, recipe.student.lr) == ("no", 1000, 1e-5)
    assert recipe.matching.batched_scores is False
    assert isinstance(recipe.student.ema, float)
    assert load_recipe(write(tmp_path, "data: {cache: '', folder: 12}\n")).data.folder == "12"


def test_a_file_without_a_name_is_called_after_itself(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "base: portraits\n")).name == "mine"
    assert load_recipe(write(tmp_path, "", "empty.yaml")).name == "empty"
    message = fault(write(tmp_path, "seed: 1\n", "my run.yaml"))
    assert "name is my run" in message and "letters, digits" in message


def test_bases_are_a_chain_and_the_nearest_wins(tmp_path: Path) -> None:
    write(tmp_path, "base: portraits\nstudent: {rank: 4, lr: 2e-4}\ntrain: {steps: 9}\n", "one.yaml")
    path = write(tmp_path, "base: one.yaml\nstudent: {rank: 6}\n")
    recipe = load_recipe(path, {"train.steps": "11"})
    assert (recipe.student.rank, recipe.student.lr, recipe.train.steps) == (6, 2e-4, 11)
    assert recipe.critic.updates == 5 and recipe.name == "mine"


def test_a_circle_of_bases(tmp_path: Path) -> None:
    write(tmp_path, "base: mine.yaml\n", "one.yaml")
    message = fault(write(tmp_path, "base: one.yaml\n"))
    assert "circle" in message and "one.yaml" in message and "mine.yaml" in message
    assert "circle" in fault(write(tmp_path, "base: self.yaml\n", "self.yaml"))


def test_a_bad_base(tmp_path: Path) -> None:
    assert "base is null" in fault(write(tmp_path, "base:\n"))
    assert "'nowhere.yaml'" in fault(write(tmp_path, "base: nowhere.yaml\n"), longest=1000)


# ---- faults of files


def test_an_unknown_recipe_lists_the_names() -> None:
    message = fault("portrait_dmd", longest=1000)
    assert "'portrait_dmd'" in message and "did you mean portraits_dmd" in message
    assert all(name in message for name in RECIPES)


def test_an_unknown_key_names_the_nearest_the_file_and_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nstudent:\n  rnak: 4\n")
    message = fault(path)
    assert f"no setting student.rnak (given in {path} (line 3)" in message
    assert "did you mean student.rank" in message
    assert "did you mean student.lr or critic.lr" in fault(write(tmp_path, "lr: 1\n"))
    assert "did you mean" in fault(write(tmp_path, "studnet: {rank: 1}\n"))
    assert "--help" in fault(write(tmp_path, "zzzzzz: 1\n"))


@pytest.mark.parametrize(
    ("text", "key", "shown", "expected"),
    [
        ("train: {steps: many}", "train.steps", "many", "a whole number from 1 to 10000000 (updates)"),
        ("train: {steps: 2.5}", "train.steps", "2.5", "a whole number"),
        ("train: {steps: '12'}", "train.steps", "12", "a whole number"),
        ("train: {steps: true}", "train.steps", "true", "a whole number"),
        ("train: {steps: }", "train.steps", "null", "a whole number"),
        ("train: {steps: [1, 2]}", "train.steps", "1,2", "a whole number"),
        ("train: {steps: {a: 1}}", "train.steps", "a group of values", "a whole number"),
        ("student: {lr: fast}", "student.lr", "fast", "a number from 0 to 0.1"),
        ("student: {lr: .nan}", "student.lr", ".nan", "a number from 0 to 0.1"),
        ("student: {lr: nan}", "student.lr", "nan", "a number from 0 to 0.1"),
        ("student: {lr: -1e-4}", "student.lr", "-0.0001", "a number from 0 to 0.1"),
        ("student: {ema: 0.99999}", "student.ema", "0.99999", "a number from 0 to 0.9999"),
        ("student: {kind: dora}", "student.kind", "dora", "one of lora, full"),
        ("matching: {alpha_weak: 1.5}", "matching.alpha_weak", "1.5", "a number from 0 to 1"),
        ("matching: {batched_scores: 3}", "matching.batched_scores", "3", "true or false"),
        ("data: {height: 0}", "data.height", "0", "a whole number from 8 to 8192 (px)"),
        ("data: {folder: [a]}", "data.folder", "a", "text"),
        ("name: ../up", "name", "../up", "letters, digits"),
        ("name: ''", "name", "empty", "letters, digits"),
        ("seed: -1", "seed", "-1", "a whole number from 0 to 4294967295"),
        ("student: {sigmas: [1, 0.5]}", "student.sigmas", "1,0.5", "a descending list"),
        ("student: {sigmas: [0.5, 0.5, 0]}", "student.sigmas", "0.5,0.5,0", "a descending list"),
        ("student: {sigmas: [1.1, 0]}", "student.sigmas", "1.1,0", "a descending list"),
        ("student: {sigmas: [1, x, 0]}", "student.sigmas", "1,x,0", "a descending list"),
        ("student: {sigmas: [1, nan, 0]}", "student.sigmas", "1,nan,0", "a descending list"),
        ("student: {sigmas: []}", "student.sigmas", "", "a descending list"),
        ("student: {sigmas: &a [*a]}", "student.sigmas", "a list of lists", "a descending list"),
    ],
)
def test_a_wrong_value(text: str, key: str, shown: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"# a comment\n{text}\n")
    message = fault(path)
    assert message.startswith(f"{key} is {shown}")
    assert f"in {path} (line 2), but it must be {expected}" in message


def test_a_section_that_is_no_section(tmp_path: Path) -> None:
    assert "student is 3" in (message := fault(write(tmp_path, "student: 3\n"))) and "section" in message


def test_a_key_that_is_set_twice(tmp_path: Path) -> None:
    message = fault(write(tmp_path, "student:\n  rank: 4\n  rank: 8\n"))
    assert "student.rank is set twice" in message and "line 2" in message and "line 3" in message


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nstudent:\n  rank: [4\ntrain: {}\n")
    message = fault(path)
    assert str(path) in message and "broken YAML in line 4" in message
    assert "broken YAML in line 2" in fault(write(tmp_path, "seed: 1\n\tlr: 2\n"))
    assert "broken YAML" in fault(write(tmp_path, "seed: 1\n---\nseed: 2\n"))


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    assert "it holds a list" in fault(write(tmp_path, "- a\n- b\n"))
    assert "it holds a single value" in fault(write(tmp_path, "portraits\n"))
    binary = tmp_path / "clip.mp4"
    binary.write_bytes(bytes(range(256)))
    assert "no UTF-8 text" in fault(binary)
    binary.write_bytes(b"\x00\x01\x02")
    assert "not a YAML file" in fault(binary)
    binary.write_bytes(b"a" * 1_000_001)
    assert "too large" in fault(binary)
    assert "is a folder" in fault(tmp_path)
    assert "YAML file" in fault(write(tmp_path, "[" * 500))


# ---- values


def test_the_evaluation_may_begin_where_the_training_ends() -> None:
    load_recipe("portraits", {"evaluate.seed": "512"})
    load_recipe("portraits", {"evaluate.seed": "0", "evaluate.clips": "0"})
    load_recipe("portraits", {"evaluate.seed": "0", "data.folder": "my_clips"})  # a seed of noise alone
    assert "to at least 4096" in fault("portraits_long", {"evaluate.seed": "4095"})


# ---- overrides and the command line


def test_overrides_are_texts_or_values() -> None:
    texts = load_recipe("portraits", {"student.sigmas": "1, .5, 0", "seed": "7", "matching.batched_scores": "no"})
    values = load_recipe("portraits", {"student.sigmas": [1, 0.5, 0], "seed": 7, "matching.batched_scores": False})
    assert texts == values and list(texts.student.sigmas) == [1, 0.5, 0] and texts.seed == 7
    assert list(load_recipe("portraits", {"student.sigmas": "[1, 0]"}).student.sigmas) == [1, 0]
    assert fault("portraits", {"seed": 7.5}).startswith("seed is 7.5 on the command line, but it must be")
    assert "no setting student (given on the command line)" in fault("portraits", {"student": "4"})


def test_a_place_may_be_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    given = {"data.cache": "~/w2svd", "model.loras": ("~/a.safetensors@0.5", "b.safetensors"), "name": "x"}
    recipe = check_recipe(given, "in a test")
    assert recipe.data.cache == str(tmp_path / "w2svd")
    assert recipe.model.loras == (f"{tmp_path / 'a.safetensors@0.5'}", "b.safetensors")


def test_check_recipe_names_its_place() -> None:
    assert check_recipe({}, "in node Train") == Recipe()
    with pytest.raises(UserError, match=r"^train\.batch is 0 in node Train, but it must be a whole number from 1"):
        check_recipe({"train.batch": 0}, "in node Train")


def test_both_spellings_of_the_command_line() -> None:
    given = parse("portraits_dmd", "--student.lr", "1e-5", "--seed=3", "--out", "x", "--student.sigmas=1,0.5,0")
    assert given == {"student.lr": "1e-5", "seed": "3", "student.sigmas": "1,0.5,0"}
    recipe = load_recipe("portraits", given)
    assert recipe.student.lr == 1e-5 and list(recipe.student.sigmas) == [1, 0.5, 0]
    assert recipe.seed == 3
    assert parse() == {}
    assert parse("--seed", "1", "--seed", "2") == {"seed": "2"}


@pytest.mark.parametrize("key", list(all_settings()))
def test_any_key_can_be_set(key: str) -> None:
    assert parse(f"--{key}", "5") == {key: "5"}
    leaf = all_settings()[key]
    assert leaf.parse(leaf.shown_default) == leaf.default
    assert load_recipe("portraits", {key: leaf.shown_default, "name": "portraits"})


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--student.rnak", "4"), ("no option --student.rnak", "did you mean --student.rank")),
        (("--student.rnak=4",), ("no option --student.rnak", "did you mean --student.rank")),
        (("--student.weight-decay", "4"), ("--student.weight-decay", "did you mean --student.weight_decay")),
        (("--lr", "4"), ("did you mean --student.lr or --critic.lr",)),
        (("--ou", "x"), ("no option --ou", "did you mean --out")),
        (("--stud", "x"), ("no option --stud",)),
        (("--student.lr",), ("--student.lr", "expected one argument")),
        (("portraits", "student.lr=4"), ("one argument too many, 'student.lr=4'",)),
    ],
)
def test_faults_of_the_command_line(arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    assert all(part in message for part in parts), message


def test_a_doors_own_option_stays_its_own() -> None:
    parser = Parser()
    parser.add_argument("--seed", type=int)
    add_arguments(parser)
    own, settings = parse_arguments(parser, ["--seed", "5", "--train.steps", "2"])
    assert own.seed == 5 and settings == {"train.steps": "2"}


# ---- help


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert settings_help() in printed
    words = " ".join(printed.split())
    for key, leaf in all_settings().items():
        assert leaf.meaning and leaf.expected
        default = leaf.shown_default or "empty"
        assert f"--{key} VALUE {leaf.meaning}; {leaf.expected}; default {default}" in words


def test_every_number_has_a_range_and_every_default_is_inside() -> None:
    for key, leaf in all_settings().items():
        if leaf.kind in ("int", "float"):
            assert leaf.low is not None and leaf.high is not None, key
            assert isinstance(leaf.default, int | float) and leaf.low <= leaf.default <= leaf.high, key
        if leaf.kind == "choice":
            assert leaf.default in leaf.choices


def test_the_table_covers_every_field() -> None:
    def count(model: type[Section]) -> int:
        kinds = [field.annotation for field in model.model_fields.values()]
        return sum(count(k) if isinstance(k, type) and issubclass(k, Section) else 1 for k in kinds)

    assert count(Recipe) == len(all_settings())
    assert {"method", "student.lr", "critic.updates", "evaluate.few_step_guidance"} <= set(all_settings())


def test_no_torch_is_imported() -> None:
    code = "import sys, w2svd_core.config as c; c.load_recipe('portraits'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
