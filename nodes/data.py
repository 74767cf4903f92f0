"""The model and the clips or prompts of a training, by name: nothing is loaded here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .compat import CATEGORY, field, io, schema, setting_values, told, widgets
from .places import NONE, PORTRAITS, SUFFIX, folder_in, input_stamp, stamp_of
from .sockets import DATASET, MODEL, Dataset, ModelHandle

LARGE = {"model.precision": "bf16", "model.gradient_checkpointing": True}  # what models of a real size need
LOADERS, DATA = f"{CATEGORY}/loaders", f"{CATEGORY}/data"
SIZE = ("data.frames", "data.height", "data.width", "data.fps")
PARTS = {"vae": "vae", "text_encoder": "text_encoders", "image_encoder": "clip_vision"}  # setting -> folder of models
SECOND_PARTS = {"text_encoder_2": "text_encoders"}  # of models that read a prompt twice


def model_names() -> list[str]:
    """Diffusers folders, and single files of diffusion models."""
    import folder_paths

    files = [name for name in folder_paths.get_filename_list("diffusion_models") if name.endswith(SUFFIX)]
    return [*pipelines(), *files] or [NONE]


def pipelines() -> list[str]:
    """Folders of diffusers pipelines, by name."""
    import folder_paths

    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    return sorted(
        {p.name for root in roots if root.is_dir() for p in root.iterdir() if (p / "model_index.json").is_file()}
    )


def model_path(name: str) -> str:
    """The folder or file of a name of `model_names`.

    Raises:
        UserError: there is none.
    """
    import folder_paths

    from ..w2svd_core.errors import UserError

    if name in pipelines():
        roots = [Path(root) / name for root in folder_paths.get_folder_paths("diffusers")]
        return str(next(root for root in roots if (root / "model_index.json").is_file()))
    found = folder_paths.get_full_path("diffusion_models", name) if name in model_names() else None
    if found is None:
        raise UserError(
            f"there is no model {name}; put a diffusers folder into models/diffusers, or a file into "
            "models/diffusion_models, and choose it in the node"
        )
    return str(found)


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import folder_paths

        from ..w2svd_core.backbones import RECIPES, USUAL

        def part(setting: str, folder: str, **more: Any) -> Any:
            names = [NONE, *(name for name in folder_paths.get_filename_list(folder) if name.endswith(SUFFIX))]
            words = f"The {setting.replace('_', ' ')} of a single file; none takes the one in the model's own folder."
            return field(io.Combo, setting, options=names, default=NONE, tooltip=words, **more)

        def tokenizer(setting: str, whose: str, **more: Any) -> Any:
            words = f"The diffusers folder that holds the tokenizer of {whose}."
            return field(io.Combo, setting, options=[NONE, *pipelines()], default=NONE, tooltip=words, **more)

        return schema(
            node_id="W2SVD_LoadModel",
            display_name="Load Video Model (for training)",
            category=LOADERS,
            description="Names a model for Train. Its weights load there, and nowhere else.",
            inputs=[
                field(
                    io.Combo,
                    "model",
                    options=model_names(),
                    tooltip="A folder in models/diffusers, or a .safetensors file in models/diffusion_models.",
                ),
                *(part(setting, folder) for setting, folder in PARTS.items()),
                tokenizer("tokenizer", "a single file's text encoder"),
                *widgets(list(LARGE), LARGE),
                field(
                    io.Combo,
                    "model_family",
                    optional=True,
                    display_name="model.family",
                    options=list(RECIPES),
                    default=USUAL,
                    tooltip="What kind of model it is.",
                ),
                *widgets(["model.first_frame"], optional=True),
                *(part(setting, folder, optional=True) for setting, folder in SECOND_PARTS.items()),
                tokenizer("tokenizer_2", "a single file's second text encoder", optional=True),
            ],
            outputs=[MODEL.Output(display_name="model", tooltip="The model for Train, by name.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **given: Any) -> str:
        import folder_paths

        from ..w2svd_core.errors import UserError

        files = PARTS | SECOND_PARTS
        places = [folder_paths.get_full_path(folder, given.get(part) or NONE) for part, folder in files.items()]
        try:
            names = (model, given.get("tokenizer"), given.get("tokenizer_2"))
            places += [model_path(name) for name in names if name and name != NONE]
        except UserError:
            return ""  # the node will say it
        return " ".join(stamp_of(Path(place)) for place in places if place)

    @classmethod
    @told
    def execute(cls, model: str, **given: Any) -> io.NodeOutput:
        import folder_paths

        from ..w2svd_core.errors import UserError

        settings: dict[str, object] = {"model.encoders": "own", **setting_values(given)}
        for part, folder in (PARTS | SECOND_PARTS).items():
            name = given.get(part, NONE)
            if name != NONE:
                found = folder_paths.get_full_path(folder, name)
                if found is None:
                    raise UserError(f"models/{folder} holds no file {name}; choose another {part.replace('_', ' ')}")
                settings[f"model.{part}"] = str(found)
        for part in ("tokenizer", "tokenizer_2"):
            if (name := given.get(part, NONE)) != NONE:
                settings[f"model.{part}"] = model_path(name)
        return io.NodeOutput(ModelHandle(model_path(model), settings))


class DatasetFromFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_DatasetFromFolder",
            display_name="Clips from Folder",
            category=DATA,
            description="Clips with captions to train on: a folder in ComfyUI's input folder, or drawn portraits.",
            inputs=[
                clip_choice(),
                *widgets([*SIZE, "data.clips", "data.buckets", "data.min_frames"]),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="What Train learns on, by name.")],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: Any) -> str:
        return input_stamp(folder)

    @classmethod
    @told
    def execute(cls, folder: str, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(Dataset({"data.folder": clip_place(folder), **setting_values(given)}))


class PromptSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="W2SVD_PromptSet",
            display_name="Prompts Only",
            category=DATA,
            description="Prompts to distil on without clips: the student walks its own path from noise.",
            inputs=[
                field(
                    io.String, "prompts", multiline=True, default="a person, talking", tooltip="A prompt in each line."
                ),
                *widgets(SIZE),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="What Train learns on, by name.")],
        )

    @classmethod
    @told
    def execute(cls, prompts: str, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(Dataset(setting_values(given), prompt_lines(prompts)))


def clip_choice() -> Any:
    """The input that names a folder of clips; `clip_place` reads it."""
    words = (
        "A folder inside ComfyUI's input folder with videos and a .txt caption beside each; portraits draws talking "
    )
    return field(io.String, "folder", default=PORTRAITS, tooltip=f"{words}heads instead.")


def clip_place(folder: str) -> str:
    """`data.folder` of a folder inside ComfyUI's input folder, or the drawn portraits.

    Raises:
        UserError: as `folder_in`.
    """
    return folder if folder == PORTRAITS else str(folder_in("input", folder))


def prompt_lines(text: str) -> tuple[str, ...]:
    """The prompts of a text, one in each line that is not empty.

    Raises:
        UserError: there is none.
    """
    from ..w2svd_core.errors import UserError

    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise UserError("there is no prompt; write one in each line")
    return lines


NODES: list[type[io.ComfyNode]] = [LoadModel, DatasetFromFolder, PromptSet]
