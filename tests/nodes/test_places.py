"""Names of files: nothing outside ComfyUI's folders is read or written, and a changed file runs its node again."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from w2svd_core.backbones import wan_keys
from w2svd_core.lora_files import LoraMetadata, LoraPair, Schedule, write_lora

Modules = Callable[[str], ModuleType]

PAIRS = {"blocks.0.attn1.to_q": LoraPair(torch.ones(2, 6), torch.ones(8, 2), 2.0)}
ABOUT = LoraMetadata("dmd", (Schedule((1.0, 0.5, 0.0)),), "Wan", "")
OUT = [
    "../x", "..\\x", "a/../../x", "a\\..\\..\\x", "/x", "\\x", "//host/share/x", "\\\\host\\share\\x", "C:\\x", "C:x",
    "c:/x", "..", "a/..", "../",
]  # fmt: skip
NO_NAMES = [
    "",
    " ",
    ".",
    ". .",
    "a\0b",
    "a\nb",
    "a*",
    "a?",
    'a"b',
    "a<b",
    "a|b",
    "NUL",
    "con.txt",
    "lpt1/x",
    ".safetensors",
]
REFUSED = "leads out of|is no name for a file"


@pytest.fixture
def home(comfy_home: Path, tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's folders with a LoRA, a folder of clips and a run, empty again at the end; beside them `outside`."""
    write_lora(comfy_home / "models" / "loras" / "own.safetensors", PAIRS, ABOUT, key_map=wan_keys)
    for folder in ("input/clips", "output/w2svd/run", "outside/clips"):
        (comfy_home / folder).mkdir(parents=True)
    (comfy_home / "input" / "clips" / "a.mp4").write_bytes(b"1")
    (comfy_home / "input" / "file").write_bytes(b"1")
    write_lora(comfy_home / "outside" / "theirs.safetensors", PAIRS, ABOUT, key_map=wan_keys)
    yield comfy_home
    for folder in ("models/loras", "input", "output", "outside"):
        shutil.rmtree(comfy_home / folder)
        (comfy_home / folder).mkdir()


def link(place: Path, target: Path) -> None:
    """A link, where the system makes them."""
    try:
        place.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("this system makes no links")


def told(pack: ModuleType, sentence: str) -> Any:
    """The pack's own UserError: another class than that of `w2svd_core`, as inside ComfyUI."""
    import sys

    return pytest.raises(sys.modules[f"{pack.__name__}.w2svd_core.errors"].UserError, match=sentence)


@pytest.fixture
def places(module_of: Modules) -> Any:
    return module_of("nodes.places")


# ---- names


@pytest.mark.parametrize("name", [*OUT, *NO_NAMES])
def test_no_name_leads_out(places: Any, pack: ModuleType, home: Path, name: str) -> None:
    for take in (
        lambda: places.inside(home / "input", name),
        lambda: places.new_lora_file(name, True),
        lambda: places.folder_in("input", name),
        lambda: places.folder_in("output", name),
        lambda: places.run_folder(name),
    ):
        with told(pack, REFUSED) as raised:
            take()
        assert "\n" not in str(raised.value) and "\0" not in str(raised.value)


def test_both_slashes_and_spaces_around_make_the_same_name(places: Any, home: Path) -> None:
    loras, runs = home / "models" / "loras", home / "output" / "w2svd"
    assert places.new_lora_file("deep\\new.v1", False) == loras / "deep" / "new.v1.safetensors"
    assert places.new_lora_file(" deep/new ", False) == loras / "deep" / "new.safetensors"
    assert places.run_folder("a\\b") == places.run_folder("a/b/") == runs / "a" / "b"
    assert places.folder_in("input", "clips") == home / "input" / "clips"


@pytest.mark.parametrize(
    ("node", "values"),
    [
        ("W2SVD_LoadLoRA", {"model": None, "lora": "{}", "strength": 1.0}),
        ("W2SVD_WeakLoRA", {"model": None, "lora": "{}", "matching_alpha_weak": 0.25}),
        ("W2SVD_ConvertLoRA", {"lora": "{}", "format": "native", "rank": 0, "name": "x", "if_exists": "number"}),
        ("W2SVD_Sigmas", {"source": "lora", "lora": "{}", "steps": 4, "shift": 5.0, "sigmas": "", "boundary": 0.9}),
        (
            "W2SVD_ConvertLoRA",
            {"lora": "own.safetensors", "format": "native", "rank": 0, "name": "{}", "if_exists": "replace"},
        ),
        (
            "W2SVD_SaveLoRA",
            {"lora": {"x": 1}, "name": "{}", "if_exists": "number", "format": "native", "precision": "keep",
             "sampler": "euler"},
        ),
        ("W2SVD_DatasetFromFolder", {"folder": "{}"}),
        ("W2SVD_LoadModel", {"model": "{}", "tokenizer": "none"}),
    ],
)  # fmt: skip
def test_no_input_of_a_node_leads_out(nodes: dict[str, Any], home: Path, node: str, values: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    for name in (*OUT[:8], "a\0b", "gone", str(home / "outside" / "theirs.safetensors")):
        if name == "gone" and values.get("name") == "{}":
            continue
        given = {key: name if value == "{}" else value for key, value in values.items()}
        with pytest.raises(RuntimeError) as raised:  # what `told` makes of a UserError
            nodes[node].execute(**given)
        assert "\n" not in str(raised.value)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_every_input_that_names_a_file_is_tested(schemas: dict[str, Any]) -> None:
    """An input of another name has to be looked at: does it name a file?"""
    texts = {
        (name, entry.id)
        for name, schema in schemas.items()
        for entry in schema.inputs or ()
        if entry.io_type == "STRING" and entry.display_name is None
    }
    files = {
        ("W2SVD_SaveLoRA", "name"), ("W2SVD_ConvertLoRA", "name"), ("W2SVD_DatasetFromFolder", "folder"),
        ("W2SVD_EncodeClips", "folder"), ("W2SVD_Train", "name"),
    }  # fmt: skip
    words = {
        ("W2SVD_SideBySide", "names"), ("W2SVD_SideBySide", "captions"), ("W2SVD_Sigmas", "sigmas"),
        ("W2SVD_PortraitPrompt", "text"), ("W2SVD_PromptSet", "prompts"),
        ("W2SVD_PromptList", "prompts"), ("W2SVD_DatasetFromConditioning", "captions"),
        ("W2SVD_DatasetFromLatents", "captions"),
    }  # fmt: skip
    assert texts == files | words


# ---- what is there already


def test_new_files_get_a_number(places: Any, home: Path) -> None:
    loras = home / "models" / "loras"
    assert places.new_lora_file("own.safetensors", False) == loras / "own_2.safetensors"
    assert places.new_lora_file("own", True) == loras / "own.safetensors"


def test_a_name_that_is_something_else(places: Any, pack: ModuleType, home: Path) -> None:
    (home / "models" / "loras" / "folder.safetensors").mkdir()
    with told(pack, "'folder' is a folder in loras"):
        places.new_lora_file("folder", True)
    assert places.new_lora_file("folder", False).name == "folder_2.safetensors"
    (home / "output" / "w2svd" / "file").write_bytes(b"")
    with told(pack, "'file' is a file in output/w2svd"):
        places.run_folder("file")
    with told(pack, "input folder holds no folder file"):
        places.folder_in("input", "file")
    with told(pack, "models/loras holds no LoRA folder.safetensors"):
        places.lora_file("folder.safetensors")


def test_only_safetensors_that_comfyui_lists_are_read(places: Any, pack: ModuleType, home: Path) -> None:
    loras = home / "models" / "loras"
    (loras / "pickle.pt").write_bytes(b"PK")
    assert places.lora_names() == ["none", "own.safetensors"]
    beside = "../../outside/theirs.safetensors"
    for name in ("pickle.pt", beside, beside.replace("/", "\\"), str(loras / "own.safetensors"), "gone.safetensors"):
        with told(pack, "models/loras holds no LoRA"):
            places.lora_file(name)


@pytest.mark.parametrize("kind", ["zip", "pickle", "legacy", "empty", "text", "tensors cut off", "huge header"])
def test_what_is_called_safetensors_must_be_it(module_of: Modules, pack: ModuleType, home: Path, kind: str) -> None:
    loras = home / "models" / "loras"
    path, whole = loras / "fake.safetensors", (loras / "own.safetensors").read_bytes()
    weights = {"x": torch.ones(3)}
    if kind in ("zip", "legacy"):
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        contents = {
            "pickle": pickle.dumps(Trap()), "empty": b"", "text": b"version https://git-lfs.github.com/spec/v1\n" * 3,
            "tensors cut off": whole[:-8], "huge header": b"\xff" * 8 + whole[8:],
        }  # fmt: skip
        path.write_bytes(contents[kind])

    def whole_file(name: str) -> None:
        module_of("nodes.native_lora").read_native(module_of("nodes.places").lora_file(name), None, name)

    for read in (module_of("nodes.sampling").about_lora, whole_file):
        with told(pack, "is a pickled file|is not a whole safetensors file") as raised:
            read("fake.safetensors")
        assert "\n" not in str(raised.value)
    assert not (home / "sprung").exists()


class Trap:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("sprung",)


# ---- links


def test_models_are_read_wherever_their_links_lead(places: Any, home: Path) -> None:
    loras = home / "models" / "loras"
    link(loras / "linked.safetensors", home / "outside" / "theirs.safetensors")
    link(loras / "dead.safetensors", home / "outside" / "gone.safetensors")
    assert places.lora_file("linked.safetensors").samefile(home / "outside" / "theirs.safetensors")
    assert places.lora_stamp("linked.safetensors") and places.lora_stamp("dead.safetensors") == ""


def test_no_lora_is_written_through_a_link(places: Any, pack: ModuleType, home: Path) -> None:
    loras = home / "models" / "loras"
    link(loras / "store", home / "outside")
    link(loras / "linked.safetensors", home / "outside" / "theirs.safetensors")
    link(loras / "dead.safetensors", home / "outside" / "gone.safetensors")
    for name in ("store/x", "store\\clips\\x"):
        for replace in (False, True):
            with told(pack, "leads out of loras by a link"):
                places.new_lora_file(name, replace)
    for name in ("linked", "dead"):
        with told(pack, "leads out of loras by a link"):
            places.new_lora_file(name, True)
        assert places.new_lora_file(name, False) == loras / f"{name}_2.safetensors"
    link(loras / "inner", loras)
    assert places.new_lora_file("inner/x", False) == loras / "inner" / "x.safetensors"
    link(loras / "circle", loras / "circle")
    with told(pack, "leads out of loras by a link"):
        places.new_lora_file("circle/x", False)


def test_a_whole_folder_of_models_may_be_a_link(places: Any, home: Path) -> None:
    """It is ComfyUI's folder all the same."""
    loras = home / "models" / "loras"
    shutil.rmtree(loras)
    link(loras, home / "outside")
    try:
        assert places.new_lora_file("x", False) == loras / "x.safetensors"
    finally:
        loras.unlink()
        loras.mkdir()


def test_no_clips_are_read_through_a_link(places: Any, pack: ModuleType, home: Path) -> None:
    inputs = home / "input"
    link(inputs / "linked", home / "outside" / "clips")
    with told(pack, "'linked' leads out of input by a link"):
        places.folder_in("input", "linked")
    link(inputs / "clips" / "b.mp4", inputs / "file")
    assert places.folder_in("input", "clips") == inputs / "clips"  # stays in input
    link(inputs / "clips" / "c.mp4", home / "outside" / "theirs.safetensors")
    with told(pack, "the link clips/c.mp4 leads out of input; put what it points to there instead"):
        places.folder_in("input", "clips")


def test_no_run_is_written_through_a_link(places: Any, pack: ModuleType, home: Path) -> None:
    runs = home / "output" / "w2svd"
    link(runs / "linked", home / "outside")
    with told(pack, "'linked' leads out of w2svd by a link"):
        places.run_folder("linked")
    link(runs / "run" / "metrics.jsonl", home / "outside" / "gone")
    with told(pack, "the link w2svd/run/metrics.jsonl leads out of output"):
        places.run_folder("run")
    shutil.rmtree(runs)
    link(runs, home / "outside")
    with told(pack, "'new' leads out of output by a link"):
        places.run_folder("new")
    runs.unlink()


# ---- what has changed


@pytest.mark.parametrize("node", ["W2SVD_LoadLoRA", "W2SVD_WeakLoRA", "W2SVD_ConvertLoRA", "W2SVD_Sigmas"])
def test_a_changed_file_runs_its_node_again(nodes: dict[str, Any], home: Path, node: str) -> None:
    stamp = nodes[node].fingerprint_inputs
    given = {"source": "lora"} if node == "W2SVD_Sigmas" else {}
    first = stamp(lora="own.safetensors", model=None, strength=1.0, **given)
    assert first and stamp(lora="own.safetensors", **given) == first
    write_lora(home / "models" / "loras" / "own.safetensors", PAIRS, None, key_map=wan_keys)
    assert stamp(lora="own.safetensors", **given) != first
    assert stamp(lora=None) == stamp(lora="none") == stamp(lora="gone.safetensors") == stamp() == ""


def test_levels_that_no_file_gives_have_no_stamp(nodes: dict[str, Any], home: Path) -> None:
    assert nodes["W2SVD_Sigmas"].fingerprint_inputs(source="steps", lora="own.safetensors") == ""
    assert nodes["W2SVD_Sigmas"].fingerprint_inputs(source=None, lora=None) == ""


def test_a_folder_changes_with_its_files(places: Any, home: Path) -> None:
    first = places.input_stamp("clips")
    assert first and places.input_stamp("clips") == first
    (home / "input" / "clips" / "a.txt").write_text("a caption")
    second = places.input_stamp("clips")
    (home / "input" / "clips" / "a.txt").write_text("another caption")
    assert len({first, second, places.input_stamp("clips")}) == 3
    assert {places.input_stamp(name) for name in ("portraits", "", None, "gone", "../outside")} == {""}


def test_nothing_that_reads_a_file_is_without_a_stamp(nodes: dict[str, Any], schemas: dict[str, Any]) -> None:
    """A node with a list of files has `fingerprint_inputs`; Load Video Model and Train only name theirs."""
    lists = {
        name
        for name, schema in schemas.items()
        if any(entry.io_type == "COMBO" and entry.id == "lora" for entry in schema.inputs or ())
    }
    assert lists == {name for name in lists if hasattr(nodes[name], "fingerprint_inputs")}
    assert len(lists) == 4


def test_the_path_of_a_saved_lora_is_inside(
    nodes: dict[str, Any], module_of: Modules, home: Path, monkeypatch: Any
) -> None:
    from w2svd_core.lora_files import native_tensors

    save = nodes["W2SVD_SaveLoRA"]
    monkeypatch.setattr(save, "hidden", SimpleNamespace(unique_id="1"), raising=False)
    model = module_of("nodes.native_lora").LoraModel(native_tensors(PAIRS, wan_keys), ABOUT)
    (path,) = save.execute(model, "a\\b", "number", "native", "keep", "euler").args
    assert Path(path) == home / "models" / "loras" / "a" / "b.safetensors" and Path(path).is_file()
