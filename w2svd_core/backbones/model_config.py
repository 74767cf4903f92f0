"""The config of a transformer on disk: of a folder, in a file's header, or told by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import opened_safetensors
from .weights import read_json

Config = dict[str, Any]
Place = Path | str


@dataclass(frozen=True)
class ConfigReader:
    """How one family's transformers are told.

    Attributes:
        class_name: of diffusers.
        a_model: what people call one, with its article ("a Wan model").
        where_to_find: the published ones, in words.
        arguments: the class's arguments that a config holds, checked; the config and its place.
        diffusers_names: where a single file keeps what (diffusers' name -> the file's own).
        inferred: the config from shapes alone, by diffusers' names, and the file's place.
        refuse: stop at a config that is not supported; the config and its place.
        refuse_folder: stop at a folder that is not supported.
    """

    class_name: str
    a_model: str
    where_to_find: Callable[[], str]
    arguments: Callable[[Mapping[str, Any], Place], Config]
    diffusers_names: Callable[[Iterable[str]], Mapping[str, str]]
    inferred: Callable[[Mapping[str, Sequence[int]], Place], Config]
    refuse: Callable[[Mapping[str, Any], Place], None]
    refuse_folder: Callable[[Path], None] = lambda path: None

    def at(self, path: Path) -> Config:
        """The config of a transformer on disk, without its weights.

        Raises:
            UserError: it is not there, of another family, or of a kind that is not supported.
        """
        if not path.exists():
            raise UserError(f"{path} is not there; {self._wanted()}")
        if path.is_dir():
            return self.of_folder(path)[1]
        with opened_safetensors(path) as file:
            try:
                own = self.diffusers_names(file.keys())
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            shapes = {name: file.get_slice(key).get_shape() for name, key in own.items()}
            return self.of_file(dict(file.metadata() or {}), shapes, path)

    def of_folder(self, path: Path) -> tuple[Path, Config]:
        """The folder of a transformer, or of the pipeline that it belongs to: where its weights are, and its config.

        Raises:
            UserError: of another family, or of a kind that is not supported.
        """
        self.refuse_folder(path)
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        place = folder / "config.json"
        config = read_json(place.read_bytes(), place) if place.is_file() else {}
        if config.get("_class_name") != self.class_name:
            raise UserError(f"{path} is not a diffusers folder of a {self.class_name}; {self._wanted()}")
        known = self.arguments(config, place)
        self.refuse(known, path)
        return folder, known

    def of_file(self, header: Mapping[str, str], shapes: Mapping[str, Sequence[int]], path: Path) -> Config:
        """The config that our own files carry in the header, else the one that the shapes tell.

        Args:
            shapes: by diffusers' names; of parameters that a native file keeps together, that of all of them.

        Raises:
            UserError: of a kind that is not supported.
        """
        if "config" in header:
            place = f"the config in the header of {path}"
            config = self.arguments(read_json(header["config"], place), place)
        else:
            config = self.inferred(shapes, path)
        self.refuse(config, path)
        return config

    def _wanted(self) -> str:
        return (
            "model.path takes a diffusers folder (with transformer/config.json) or a .safetensors file of "
            f"{self.a_model}, published as {self.where_to_find()}; models of other kinds have another model.family"
        )
