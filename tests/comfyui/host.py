"""Start a real ComfyUI on a free loopback port, with the extension and folders of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drive import get

ROOT = Path(__file__).parents[2]
START_SECONDS = 300
FOLDERS = ("custom_nodes", "models/diffusion_models", "models/loras", "models/vae", "input", "output", "temp", "user")


@dataclass(frozen=True)
class Server:
    """A ComfyUI that runs: its address, its folders, its log, its process."""

    url: str
    home: Path
    log: Path
    pid: int

    def logged(self) -> str:
        """What it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(checkout: Path, home: Path) -> Iterator[Server]:
    """ComfyUI on the CPU as long as the block lasts; COMFYUI_PYTHON names another Python than the tests' own.

    Raises:
        RuntimeError: it ended, or does not answer in time; the end of its log is in the message.
    """
    for folder in FOLDERS:
        (home / folder).mkdir(parents=True, exist_ok=True)
    pack = home / "custom_nodes" / "w2svd"
    if not pack.exists():
        pack.symlink_to(ROOT, target_is_directory=True)
    port, log = free_port(), home / "comfy.log"
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu", "--listen", "127.0.0.1"]
    command += ["--port", str(port), "--base-directory", str(home), "--disable-auto-launch", "--disable-api-nodes"]
    command += ["--database-url", f"sqlite:///{home}/user/comfyui.db"]
    cache = {"XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=checkout,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | cache | {"PYTHONUNBUFFERED": "1"},
        )
    server = Server(f"http://127.0.0.1:{port}", home, log, process.pid)
    try:
        _wait(process, server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(process: subprocess.Popen[bytes], server: Server) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            get(server.url, "/system_stats")
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise RuntimeError(f"ComfyUI did not start: {server.logged()[-3000:]}")
