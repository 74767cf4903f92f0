"""Files are whole or not there; a file that can't be used is one sentence."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from w2svd_core.config import check_recipe
from w2svd_core.errors import SPINS, UserError, guarded
from w2svd_core.files import atomic_write, opened_safetensors, read_safetensors, write_safetensors, write_text
from w2svd_core.hashing import tensors_hash
from w2svd_core.run import RunFolder


def test_safetensors_round_trip(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.tensor(2.5),
        "c": torch.arange(3),
        "d": torch.randn(2, 2).bfloat16(),
    }
    write_safetensors(tmp_path / "folder" / "x.safetensors", tensors, {"step": "7"})
    found, metadata = read_safetensors(tmp_path / "folder" / "x.safetensors")
    assert metadata == {"step": "7"} and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert tensors_hash(found) == tensors_hash(tensors)


def test_tensors_that_share_memory_are_written_like_any_other(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(4, 3)
    tensors = {"whole": whole, "same": whole, "tail": whole[-2:], "across": whole.t()}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    found, _ = read_safetensors(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.safetensors is not there"):
        read_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 60, 300])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.zeros(200)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_safetensors(path)


def test_a_gguf_file_is_told_from_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(UserError, match=r"x\.gguf is a GGUF file, whose weights are quantised"):
        read_safetensors(tmp_path / "x.gguf")


def test_too_little_memory_is_no_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.zeros(200)})
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), opened_safetensors(path):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(UserError, match="not a whole safetensors file"), opened_safetensors(path):
        raise RuntimeError("anything else")


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
def test_a_pickled_file_is_refused_without_reading_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    else:
        torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(UserError, match="pickled file"):
        read_safetensors(path)


def test_a_header_as_long_as_a_pickles_first_byte_is_read(tmp_path: Path) -> None:
    """The length of a header can begin with 0x80, as a pickle does."""
    for padding in range(300):
        path = tmp_path / "x.safetensors"
        write_safetensors(path, {"a": torch.zeros(1)}, {"padding": "x" * padding})
        if path.read_bytes()[:1] == b"\x80":
            assert read_safetensors(path)[1]["padding"] == "x" * padding
            return
    pytest.fail("no header of that length was made")


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_success_leaves_one_file_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.txt"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["x.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*x\.txt"):
        write_text(tmp_path / "file" / "x.txt", "new")


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from w2svd_core.errors import guarded
from w2svd_core.files import write_safetensors, write_text
from w2svd_core.run import RunFolder

folder, large = Path(sys.argv[1]), {"a": torch.zeros(100_000)}
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
doors = [
    lambda: RunFolder(folder).save_checkpoint(2, lambda: large),
    lambda: write_safetensors(folder / "x.safetensors", large),
    lambda: write_text(folder / "x.txt", "long " * 10_000),
    lambda: RunFolder(folder).log(3, {"student/loss": 1.0}),
]
print([guarded(lambda: door() or 0) for door in doors])
"""


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    RunFolder(tmp_path).save_checkpoint(1, lambda: {"a": torch.ones(3)})
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(3)})
    write_text(tmp_path / "x.txt", "old")
    write_text(tmp_path / "metrics.jsonl", '{"step": 1, "loss": 2.0}\n' * 163)  # 21 bytes are left
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2, 2, 2, 2]"
    assert [line[:19] for line in done.stderr.splitlines()] == ["error: cannot write"] * 4
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after.keys() == before.keys()
    assert all(after[path].startswith(data) for path, data in before.items())
    assert RunFolder(tmp_path).latest_checkpoint()[0] == 1
    assert len(RunFolder(tmp_path).metrics()) == 163  # the line that was cut off does not count


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_metrics_on_a_full_disk_say_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device; free some space and resume"):
        RunFolder(tmp_path).log(1, {"student/loss": 1.0})


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    recipe = check_recipe({}, "in a test")
    run = RunFolder.create(recipe, tmp_path / "run")
    assert run.recipe() == recipe == RunFolder.open(run.path).recipe()
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder.create(recipe, tmp_path / "run")


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path)


def test_a_door_turns_errors_into_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> int:
        raise error

    assert guarded(lambda: 0) == 0
    assert guarded(lambda: fails(UserError("what and where"))) == 2
    assert guarded(lambda: fails(KeyboardInterrupt())) == 130
    assert guarded(lambda: fails(torch.OutOfMemoryError("CUDA out of memory"))) == 2
    with pytest.raises(RuntimeError):
        guarded(lambda: fails(RuntimeError("a fault of ours")))
    told, interrupted, memory = capsys.readouterr().err.splitlines()
    assert (told, interrupted) == ("error: what and where", "interrupted")
    assert memory.startswith("error: there is not enough memory; lower data.frames")


@pytest.mark.parametrize(("own", "found"), [(None, SPINS), ("7", "7")])
def test_waiting_threads_leave_their_core_to_other_programs(own: str | None, found: str) -> None:
    code = (
        "import os, sys; from w2svd_core import train; from w2svd_core.errors import guarded; "
        "guarded(lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules) or 0)"
    )
    env = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    env |= {"GOMP_SPINCOUNT": own} if own else {}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found, "False"]  # torch reads it once, when it is loaded
