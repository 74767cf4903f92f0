"""What goes wrong in the middle of the work: memory and disk. One sentence on the node, and the run goes on."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from drive import Run, run_prompt
from graphs import STEPS, Nodes, assert_told, folder, node, portraits, steps, student
from host import Server

from w2svd_core.files import read_safetensors

resource = pytest.importorskip("resource")
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of a running process are Linux's")
WORK = {"train_checkpoint_every": 2}


@pytest.fixture(scope="module")
def calm(comfy: Server) -> dict[str, torch.Tensor]:
    """The student of a training that nothing disturbs."""
    done = run_prompt(comfy.url, portraits("calm", **WORK), timeout=300)
    assert done.status == "success", done.message
    return student(folder(comfy, "calm"))


def at_step(step: int, act: Callable[[], object]) -> Callable[[Run], bool]:
    """For `interrupt_when`: act once when a training has come so far; Cancel is never pressed."""
    acted: list[object] = []

    def watch(run: Run) -> bool:
        if not acted and any(f"step {step} of" in text for _, text in run.texts):
            acted.append(act())
        return False

    return watch


def assert_whole(run: Path) -> None:
    """Every file of a run can be read, and nothing half-written lies about."""
    assert steps(run) == list(range(1, len(steps(run)) + 1))
    saved = list((run / "checkpoints").glob("*.safetensors"))
    assert saved
    for path in saved:
        assert int(read_safetensors(path)[1]["step"]) == int(path.stem)
    assert not list(run.rglob(".*"))


def assert_goes_on(comfy: Server, prompt: Nodes, name: str, calm: dict[str, torch.Tensor]) -> None:
    """The same inputs end where they would have, bit for bit."""
    done = run_prompt(comfy.url, prompt, timeout=300)
    assert done.status == "success", done.message
    run = folder(comfy, name)
    assert steps(run) == list(range(1, STEPS + 2))
    assert all(torch.equal(tensor, calm[key]) for key, tensor in student(run).items())


# ---- disk


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system of its own, in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    place.mkdir(parents=True)
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, f"size={size}".encode()):
        pytest.skip(f"no file system can be mounted here ({os.strerror(ctypes.get_errno())})")
    try:
        yield
    finally:
        libc.umount2(bytes(place), 2)  # MNT_DETACH


def fill(place: Path) -> None:
    """Leave no byte of a disk."""
    with (place / "ballast").open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while stream.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


@linux
def test_a_full_disk(comfy: Server, calm: dict[str, torch.Tensor]) -> None:
    prompt, run = portraits("full", **WORK), folder(comfy, "full")
    with small_disk(run, "64m"):
        done = run_prompt(comfy.url, prompt, timeout=300, interrupt_when=at_step(3, lambda: fill(run)))
        assert_told(done, comfy, "5", "No space left on device", "free some space")
        (run / "ballast").unlink()
        assert_whole(run)
        assert_goes_on(comfy, prompt, "full", calm)


@linux
def test_a_disk_that_takes_no_large_file(comfy: Server, calm: dict[str, torch.Tensor]) -> None:
    """As on a full one, small files fit and checkpoints do not."""
    prompt, run = portraits("limited", **WORK), folder(comfy, "limited")
    with limit(comfy, resource.RLIMIT_FSIZE, 1 << 19):
        assert comfy.log.stat().st_size < 1 << 18
        done = run_prompt(comfy.url, prompt, timeout=300)
    assert_told(done, comfy, "5", "File too large", "free some space")
    assert steps(run) == [1, 2] and not list(run.rglob(".*"))
    assert_goes_on(comfy, prompt, "limited", calm)


# ---- memory


@contextmanager
def limit(comfy: Server, kind: int, value: int) -> Iterator[None]:
    """A limit on the server's process, for a while."""
    before = resource.prlimit(comfy.pid, kind)
    resource.prlimit(comfy.pid, kind, (value, before[1]))
    try:
        yield
    finally:
        resource.prlimit(comfy.pid, kind, before)


def held(comfy: Server) -> int:
    """Bytes of address space that the server has now."""
    return int(Path(f"/proc/{comfy.pid}/statm").read_text().split()[0]) * resource.getpagesize()


@linux
def test_memory_that_runs_out(comfy: Server, calm: dict[str, torch.Tensor]) -> None:
    """A large batch, after a training that has left little free memory in the process."""
    prompt, run = portraits("memory", train_batch=32, train_steps=1, train_sample_every=1), folder(comfy, "memory")
    with limit(comfy, resource.RLIMIT_AS, held(comfy) + (64 << 20)):
        done = run_prompt(comfy.url, prompt, timeout=300)
    assert_told(done, comfy, "5", "not enough memory")
    assert not list(run.rglob(".*")) and not (run / "student").exists()
    done = run_prompt(comfy.url, prompt, timeout=300)
    assert done.status == "success", done.message
    assert steps(run) == [1, 2] and all(tensor.isfinite().all() for tensor in student(run).values())


def test_a_latent_that_no_machine_holds(comfy: Server) -> None:
    wrong = {
        "1": node("W2SVD_PortraitLatent", data_frames=4093, data_height=8192, data_width=8192, batch_size=4096),
        "2": node("SaveLatent", samples=["1", 0], filename_prefix="faults/never"),
    }
    assert_told(run_prompt(comfy.url, wrong, timeout=60), comfy, "1", "not enough memory")
