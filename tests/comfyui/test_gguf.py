"""A MODEL out of a GGUF file, whose weights are unpacked layer by layer, in training.

It needs the pack ComfyUI-GGUF, whose folder COMFYUI_GGUF names, and its package gguf; otherwise it is skipped.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from native_tiny import SIGMA, asked, import_comfy, learned, lora_of, native, native_roles, shaken_adapters
from torch import nn
from wan_kinds import condition_of, points_of

from w2svd_core.files import read_safetensors


def write_gguf(source: Path, target: Path) -> None:
    """A native file as GGUF: matrices of the blocks in 8 bits, everything else in 32."""
    import gguf

    writer = gguf.GGUFWriter(str(target), "wan")
    for name, tensor in read_safetensors(source)[0].items():
        array = tensor.float().contiguous().numpy()
        if name.startswith("blocks.") and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(array, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            if array.ndim > 4:  # the format has no more; the pack reads the shape from here
                writer.add_array(f"comfy.gguf.orig_shape.{name}", list(array.shape))
                array = array.reshape(-1, *array.shape[2:])
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def imported(name: str, path: Path, folder: str | None = None) -> Any:
    """A module by its file; ComfyUI's own `nodes`, and packs, are found in no other way here."""
    places = None if folder is None else [folder]
    spec: Any = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
    module = importlib.util.module_from_spec(spec)
    if folder is not None:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def packed(twin: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny Wan as ComfyUI-GGUF's loader hands it out."""
    import_comfy()
    pytest.importorskip("gguf")
    place = os.environ.get("COMFYUI_GGUF", "")
    if not place:
        pytest.skip("COMFYUI_GGUF does not name the folder of ComfyUI-GGUF")
    import folder_paths

    path = twin[1].with_suffix(".gguf")
    write_gguf(twin[1], path)
    monkeypatch.setitem(sys.modules, "nodes", imported("nodes", Path(os.environ["COMFYUI_PATH"]) / "nodes.py"))
    pack = imported("gguf_pack", Path(place) / "__init__.py", place)
    monkeypatch.setattr(folder_paths, "get_full_path", lambda *_: str(path))
    with torch.inference_mode():
        return pack.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet(path.name)[0]


def test_a_gguf_base_trains_and_is_as_it_was(packed: Any) -> None:
    import comfy.sd

    x, condition = points_of("t2v"), native(condition_of("t2v", 2))
    before = asked(packed, x, SIGMA, condition)
    for _ in range(2):
        with native_roles(packed, checkpointing=True) as shared:
            with torch.no_grad():
                torch.testing.assert_close(
                    shared.predict_x0("teacher", x, SIGMA, condition), before, atol=1e-5, rtol=1e-5
                )
            shaken_adapters(shared)
            grads = learned(shared, "generator", x, condition)
            with torch.no_grad():
                student = shared.predict_x0("generator", x, SIGMA, condition)
            lora = lora_of(shared)
        assert len(grads) == 40 and all(grad.isfinite().all() and grad.any() for grad in grads.values())
        assert torch.equal(asked(packed, x, SIGMA, condition), before)
    with torch.inference_mode():
        with_lora, _ = comfy.sd.load_lora_for_models(packed, None, lora, 1.0, 0.0)
    torch.testing.assert_close(asked(with_lora, x, SIGMA, condition), student, atol=1e-3, rtol=1e-3)
