"""A stand-in for what the nodes use of ComfyUI: it records schemas, so that tests need no ComfyUI.

It takes the keywords that the real `comfy_api.latest` of 0.3.64 takes, and with `later` those of 0.33;
`tests/comfyui/test_standin.py` compares both with the real one.
"""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

SOCKETS = {
    "Clip": "CLIP", "Conditioning": "CONDITIONING", "Guider": "GUIDER", "Image": "IMAGE", "Latent": "LATENT",
    "LoraModel": "LORA_MODEL", "LossMap": "LOSS_MAP", "Mask": "MASK", "Model": "MODEL", "Noise": "NOISE",
    "Sampler": "SAMPLER", "Sigmas": "SIGMAS", "Vae": "VAE", "Video": "VIDEO", "AnyType": "*",
}  # fmt: skip
NUMBER = ("default", "min", "max", "step")
WIDGETS = {
    "Boolean": ("BOOLEAN", ("default", "label_on", "label_off", "socketless", "force_input")),
    "Int": ("INT", (*NUMBER, "control_after_generate", "display_mode", "socketless", "force_input")),
    "Float": ("FLOAT", (*NUMBER, "round", "display_mode", "socketless", "force_input")),
    "String": ("STRING", ("multiline", "placeholder", "default", "dynamic_prompts", "socketless", "force_input")),
    "Combo": (
        "COMBO",
        ("options", "default", "control_after_generate", "upload", "image_folder", "remote", "socketless"),
    ),
}
INPUT = ("display_name", "optional", "tooltip", "lazy")
LATER_INPUT = ("extra_dict", "raw_link", "advanced")
OUTPUT = ("id", "display_name", "tooltip", "is_output_list")
SCHEMA = (
    "node_id", "display_name", "category", "inputs", "outputs", "hidden", "description", "is_input_list",
    "is_output_node", "is_deprecated", "is_experimental", "is_api_node", "not_idempotent", "enable_expand",
)  # fmt: skip
LATER_SCHEMA = (
    "search_aliases", "is_dev_only", "price_badge", "accept_all_inputs", "essentials_category",
    "has_intermediate_output",
)  # fmt: skip


class Recorded:
    """Keeps its keywords as attributes; refuses those that it does not know, as the real class would."""

    allowed: tuple[str, ...] = ()

    def __init__(self, **keywords: Any) -> None:
        unknown = sorted(set(keywords) - set(self.allowed))
        if unknown:
            raise TypeError(f"{type(self).__qualname__} got an unexpected keyword argument {unknown[0]!r}")
        self.keywords = keywords
        for name in self.allowed:
            setattr(self, name, keywords.get(name))


def signed(cls: type, first: tuple[str, ...] = ()) -> type:
    """Let `inspect.signature` tell the keywords, of the class and of its `__init__`."""
    positional, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    own = [inspect.Parameter(name, positional) for name in first]
    named_ones = [inspect.Parameter(name, named, default=None) for name in cls.allowed if name not in first]
    cls.__signature__ = inspect.Signature([*own, *named_ones])
    init = cls.__init__

    def recorded(self: Any, *args: Any, **keywords: Any) -> None:
        init(self, **dict(zip(first, args, strict=False)), **keywords)

    recorded.__signature__ = inspect.Signature([inspect.Parameter("self", positional), *own, *named_ones])
    cls.__init__ = recorded
    return cls


def io_type(name: str, text: str, keywords: tuple[str, ...]) -> type:
    """A type with its `Input` and `Output`."""
    members = {"io_type": text, "allowed": ("id", *INPUT, *keywords)}
    input_class = signed(type("Input", (Recorded,), members), ("id",))
    output_class = signed(type("Output", (Recorded,), {"io_type": text, "allowed": OUTPUT}), ("id",))
    return type(name, (), {"io_type": text, "Input": input_class, "Output": output_class})


def multi_type(keywords: tuple[str, ...]) -> type:
    """A socket that takes several types; `io_type` is their names with commas, as the page gets it."""

    class Several(Recorded):
        allowed = ("id", "types", *INPUT, *keywords)

        def __init__(self, **keywords: Any) -> None:
            super().__init__(**keywords)
            self.io_type = ",".join(kind.io_type for kind in keywords["types"])

    return type("MultiType", (), {"Input": signed(Several, ("id", "types"))})


class ComfyNode:
    """The base of every node."""

    hidden: Any = None

    @classmethod
    def GET_SCHEMA(cls) -> Any:
        """The schema, after the check that the real one makes: no id twice."""
        schema = cls.define_schema()
        ids = [entry.id for entry in (*(schema.inputs or ()), *(schema.outputs or ())) if entry.id is not None]
        if len(set(ids)) < len(ids):
            raise ValueError("ids must be unique")
        return schema


class NodeOutput:
    """What `execute` hands back."""

    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution


def io_module(later: bool) -> ModuleType:
    """`comfy_api.latest.io`."""
    io: Any = ModuleType("comfy_api.latest.io")
    late = LATER_INPUT if later else ()
    for name, text in SOCKETS.items():
        setattr(io, name, io_type(name, text, ("extra_dict", *late[1:])))
    for name, (text, keywords) in WIDGETS.items():
        setattr(io, name, io_type(name, text, (*keywords, *late)))
    io.MultiType = multi_type(("extra_dict", *late[1:]))
    io.Custom = lambda text: io_type("Custom", text, ("extra_dict", *late[1:]))
    allowed = (*SCHEMA, *(LATER_SCHEMA if later else ()))
    io.Schema = signed(type("Schema", (Recorded,), {"allowed": allowed}), ("node_id",))
    io.ComfyNode, io.NodeOutput = ComfyNode, NodeOutput
    io.Hidden = enum.Enum("Hidden", ["unique_id", "prompt", "extra_pnginfo", "dynprompt"])
    io.FolderType = enum.Enum("FolderType", {"input": "input", "output": "output", "temp": "temp"})
    io.NumberDisplay = enum.Enum("NumberDisplay", {"number": "number", "slider": "slider"})
    return io


def shown(name: str) -> type:
    """A class of `ui` that keeps what it is given."""

    def keep(self: Any, *values: Any, **keywords: Any) -> None:
        self.values, self.keywords = values, keywords

    return type(name, (), {"__init__": keep})


def modules(later: bool, home: Path) -> dict[str, ModuleType]:
    """The modules by name; `home` holds ComfyUI's model, input, output and temporary folders."""
    latest: Any = ModuleType("comfy_api.latest")
    latest.io = io_module(later)
    names = ("PreviewAudio", "PreviewImage", "PreviewText", "PreviewVideo", "SavedImages", "SavedResult")
    latest.ui = SimpleNamespace(**{name: shown(name) for name in names})
    latest.ComfyExtension = type("ComfyExtension", (), {})
    latest.InputImpl = SimpleNamespace(VideoFromComponents=shown("VideoFromComponents"))
    latest.Types = SimpleNamespace(VideoComponents=shown("VideoComponents"))
    api: Any = ModuleType("comfy_api")
    api.latest = latest
    server: Any = ModuleType("server")
    server.PromptServer = type("PromptServer", (), {"instance": None})
    return {"comfy_api": api, "comfy_api.latest": latest, "folder_paths": folder_paths(home), "server": server}


def folder_paths(home: Path) -> ModuleType:
    """ComfyUI's `folder_paths` over one folder."""
    module: Any = ModuleType("folder_paths")

    def folders(kind: str) -> list[str]:
        return [str(home / "models" / kind)]

    def files(kind: str) -> list[str]:
        root = Path(folders(kind)[0])
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def full_path(kind: str, name: str) -> str | None:
        path = Path(folders(kind)[0]) / name
        return str(path) if path.is_file() else None

    module.get_folder_paths, module.get_filename_list, module.get_full_path = folders, files, full_path
    module.models_dir = str(home / "models")
    module.base_path = str(home)
    for kind in ("input", "output", "temp"):
        setattr(module, f"get_{kind}_directory", lambda kind=kind: str(home / kind))
        setattr(module, f"{kind}_directory", str(home / kind))
    return module


@contextmanager
def installed(home: Path, later: bool = False) -> Iterator[None]:
    """The stand-in in `sys.modules`, and what was there before put back at the end."""
    found = modules(later, home)
    before = {name: sys.modules.get(name) for name in found}
    sys.modules.update(found)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def load_pack(name: str = "/comfyui/custom_nodes/w2svd") -> ModuleType:
    """The extension as ComfyUI loads it: by its path, under a name of its own, inside `installed`."""
    import importlib.util

    for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
        del sys.modules[known]
    root = Path(__file__).parents[2]
    spec: Any = importlib.util.spec_from_file_location(
        name, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
