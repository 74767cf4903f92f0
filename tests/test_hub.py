"""Nothing is downloaded unless a recipe names a repository, and what the hub's cache holds is found without network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from huggingface_hub import constants

from w2svd_core.errors import UserError
from w2svd_core.hub import fetched
from w2svd_core.objectives.frame_matching import Settings as FrameSettings
from w2svd_core.objectives.frame_matching import codecs_of
from w2svd_core.settings import Model


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_paths_are_left_alone() -> None:
    settings = Model(path="models/wan", vae="vae.safetensors")
    assert fetched(settings) == settings


def test_a_repository_becomes_its_folder_in_the_cache(no_network: Path) -> None:
    commit = "0" * 40
    place = no_network / "models--someone--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "snapshots" / commit / "config.json").write_text("{}")
    found = fetched(Model(path="hub:someone/tiny", vae="vae.safetensors"))
    assert found == Model(path=str(place / "snapshots" / commit), vae="vae.safetensors")


def test_a_branch_stands_after_an_at(no_network: Path) -> None:
    commit, place = "1" * 40, no_network / "models--someone--tiny"
    (place / "refs" / "diffusers" / "base").mkdir(parents=True)
    (place / "refs" / "diffusers" / "base" / "post").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    found = fetched(Model(path="hub:someone/tiny@diffusers/base/post"))
    assert found.path == str(place / "snapshots" / commit)


@pytest.mark.parametrize("name", ["someone/else", "someone/else@branch", "no name at all"])
def test_one_that_can_not_be_had_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError) as caught:
        fetched(Model(text_encoder=f"hub:{name}"))
    text = str(caught.value)
    assert text.startswith(f"model.text_encoder hub:{name} could not be fetched (") and "\n" not in text


def test_an_image_model_of_the_hub_is_fetched_before_its_vae_is_looked_for(no_network: Path) -> None:
    settings = FrameSettings(model="hub:someone/else", way="decoded")
    recipe = SimpleNamespace(model=Model(path="a folder", encoders="own"))
    source = SimpleNamespace(load_codec=lambda: None)
    stage = SimpleNamespace(recipe=recipe, source=source, model=SimpleNamespace(device=torch.device("cpu")))
    with pytest.raises(UserError, match="hub:someone/else could not be fetched"):
        codecs_of(settings, cast(Any, stage))
