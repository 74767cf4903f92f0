"""Files in a real ComfyUI: nothing outside its folders, no pickles; what has changed runs again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from drive import run_prompt
from graphs import Nodes, assert_told, folder, node, portraits
from host import ROOT, Server
from portrait_graphs import WAN, base, run

from w2svd_core.lora_files import LoraMetadata, LoraPair, Schedule, write_lora

LOADED = """
import asyncio, json, logging, sys
import comfy.options
folder = sys.argv[1]
sys.argv = ["probe", "--cpu"]
comfy.options.enable_args_parsing()
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger().addHandler(Keep())
import nodes
done = asyncio.run(nodes.load_custom_node(folder, module_parent="custom_nodes"))
found = [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("W2SVD_")]
print(json.dumps([done, found, [line for line in lines if "W2SVD" in line]]))
"""


def pairs() -> dict[str, LoraPair]:
    return {"blocks.0.attn1.to_q": LoraPair(torch.zeros(2, 256), torch.zeros(256, 2), 2.0)}


def about(*sigmas: float) -> LoraMetadata:
    return LoraMetadata("dmd", (Schedule(sigmas),), "WanTransformer3DModel", "")


@pytest.fixture(scope="module")
def loras(comfy: Server) -> Iterator[Path]:
    """models/loras with a LoRA, a link to one that lies elsewhere, and a link to that folder."""
    home, loras = comfy.home, comfy.home / "models" / "loras"
    write_lora(loras / "files.safetensors", pairs(), about(1.0, 0.5, 0.0), key_map=WAN.keys)
    write_lora(home / "store" / "theirs.safetensors", pairs(), about(1.0, 0.25, 0.0), key_map=WAN.keys)
    torch.save({"x": torch.ones(2)}, loras / "pickled.safetensors")
    torch.save({"x": torch.ones(2)}, loras / "pickled.pt")
    for name, target in (("linked.safetensors", "store/theirs.safetensors"), ("store", "store")):
        (loras / name).symlink_to(home / target, target_is_directory="." not in name)
    yield loras
    (loras / "store").unlink()


def levels(lora: str) -> Nodes:
    values = {"steps": 0, "shift": 5.0, "sigmas": "", "boundary": 0.5}
    return {
        "levels": node("W2SVD_Sigmas", source="lora", lora=lora, **values),
        "shown": node("PreviewAny", source=["levels", 0]),
    }


def converted(lora: str, name: str, if_exists: str = "replace") -> Nodes:
    return {"made": node("W2SVD_ConvertLoRA", lora=lora, format="native", rank=0, name=name, if_exists=if_exists)}


def everything(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in place.rglob("*")}


# ---- links


@pytest.mark.parametrize("lora", ["linked.safetensors", f"store{os.sep}theirs.safetensors"])
def test_linked_models_are_read(comfy: Server, loras: Path, lora: str) -> None:
    assert "0.25" in run(comfy, levels(lora)).outputs["shown"]["text"][0]


def test_nothing_is_written_through_a_link(comfy: Server, loras: Path) -> None:
    before = everything(comfy.home / "store")
    for name in ("store/new", "store\\new", "linked"):
        done = run_prompt(comfy.url, converted("files.safetensors", name), timeout=60)
        assert_told(done, comfy, "made", "leads out of loras by a link")
    run(comfy, converted("files.safetensors", "linked", "number"))
    assert (loras / "linked_2.safetensors").is_file()
    assert everything(comfy.home / "store") == before


def test_runs_and_clips_are_not_reached_through_a_link(comfy: Server, loras: Path) -> None:
    before = everything(comfy.home / "store")
    folder(comfy, "").mkdir(exist_ok=True)
    folder(comfy, "linked").symlink_to(comfy.home / "store", target_is_directory=True)
    assert_told(run_prompt(comfy.url, portraits("linked"), timeout=60), comfy, "5", "leads out of w2svd by a link")
    within = folder(comfy, "within") / "checkpoints"
    within.mkdir(parents=True)
    (within / "000001.safetensors").symlink_to(comfy.home / "store" / "theirs.safetensors")
    assert_told(run_prompt(comfy.url, portraits("within"), timeout=60), comfy, "5", "the link w2svd/within/checkpoints")
    (comfy.home / "input" / "away").symlink_to(comfy.home / "store", target_is_directory=True)
    clips = portraits("never")
    clips["2"]["inputs"]["folder"] = "away"
    assert_told(run_prompt(comfy.url, clips, timeout=60), comfy, "2", "leads out of input by a link")
    assert everything(comfy.home / "store") == before and not folder(comfy, "never").exists()


# ---- only safetensors


def test_a_pickle_is_not_opened_whatever_it_is_called(comfy: Server, loras: Path) -> None:
    done = run_prompt(comfy.url, levels("pickled.safetensors"), timeout=60)
    assert_told(done, comfy, "levels", "is a pickled file")
    prompt = base() | {"lora": node("W2SVD_LoadLoRA", model=["model", 0], lora="pickled.safetensors", strength=1.0)}
    prompt["shown"] = node("PreviewAny", source=["lora", 3])
    assert_told(run_prompt(comfy.url, prompt, timeout=60), comfy, "lora", "is a pickled file")
    done = run_prompt(comfy.url, levels("pickled.pt"), timeout=60)  # 0.3.64 lets any choice through to the node
    assert done.status == "invalid" or "models/loras holds no LoRA" in done.message


# ---- the cache


def test_a_node_runs_again_when_its_file_has_changed_and_only_then(comfy: Server, loras: Path) -> None:
    write_lora(loras / "changing.safetensors", pairs(), about(1.0, 0.5, 0.0), key_map=WAN.keys)
    prompt = levels("changing.safetensors") | converted("changing.safetensors", "changed")
    first = run(comfy, prompt)
    assert not {"levels", "made"} & set(first.cached) and "0.5" in first.outputs["shown"]["text"][0]
    assert {"levels", "made"} <= set(run(comfy, prompt).cached)
    write_lora(loras / "changing.safetensors", pairs(), about(1.0, 0.75, 0.0), key_map=WAN.keys)
    third = run(comfy, prompt)
    assert not {"levels", "made"} & set(third.cached) and "0.75" in third.outputs["shown"]["text"][0]
    assert "WARNING: " not in comfy.logged()[-2000:]  # what a fingerprint that fails leaves


# ---- a broken part


def test_a_broken_file_of_nodes_takes_no_other_with_it(checkout: Path, tmp_path: Path) -> None:
    """A schema that can be made, but that ComfyUI refuses: two inputs with one id."""
    pack = tmp_path / "w2svd"
    pack.mkdir()
    shutil.copytree(ROOT / "nodes", pack / "nodes")
    for name in ("__init__.py", "w2svd_core", "web", "pyproject.toml"):
        (pack / name).symlink_to(ROOT / name)
    broken = pack / "nodes" / "evaluation.py"
    text = broken.read_text(encoding="utf-8")
    named = 'field(io.Int, "clips", default=1, min=1, max=1024'
    assert named in text
    broken.write_text(text.replace(named, named.replace("clips", "images")), encoding="utf-8")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    code = [python, "-c", LOADED, str(pack)]
    done = subprocess.run(code, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded, found, lines = json.loads(done.stdout.splitlines()[-1])
    assert loaded and "W2SVD_Train" in found and "W2SVD_Metrics" not in found
    (line,) = lines
    assert "nodes/evaluation.py are off" in line and "\n" not in line
