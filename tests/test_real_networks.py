"""FID, FVD and CLIP by tiny networks with the real calling conventions: real TorchScript, a real CLIP folder."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from w2svd_core.assembly import bundled_encoders
from w2svd_core.config import check_recipe
from w2svd_core.data.portraits import portrait_from_seed, render, render_folder
from w2svd_core.errors import UserError
from w2svd_core.evaluation import Row, codec_row, data_row, held_out
from w2svd_core.metrics.clip_text import MEAN, STD, load_clip, to_clip_input
from w2svd_core.metrics.corruptions import blur, freeze
from w2svd_core.metrics.frechet import FeatureStats, frechet_distance
from w2svd_core.metrics.networks import Videos, to_unit
from w2svd_core.metrics.real_networks import REAL_TITLES, REAL_UNITS, RealNetworks, check_real_networks
from w2svd_core.metrics.torchscript import I3D, INCEPTION, file_hash, load_torchscript
from w2svd_core.tables import about_clips, findings, judges, markdown_table

CPU = torch.device("cpu")
KEYS = ("fid_network", "fvd_network", "clip_model")
WORDS = ("a", "red", "blue", "square", "talking", "portrait")


class Inception(nn.Module):
    """As `inception-2015-12-05.pt` is called: frames uint8, 0 to 255; features only when asked for."""

    def __init__(self, width: int = 2048) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, width, generator=torch.Generator().manual_seed(0)))

    def forward(self, img: Tensor, return_features: bool = False, use_fp16: bool = False) -> Tensor:
        assert img.dtype == torch.uint8 and img.dim() == 4 and img.size(1) == 3
        x = F.adaptive_avg_pool2d((img.to(torch.float32) - 128) / 128, 4).flatten(1) @ self.weight
        return torch.tanh(x) if return_features else x[:, :8]


class Kinetics(nn.Module):
    """As `i3d_torchscript.pt` is called: clips uint8 `b c t h w`; refuses short ones."""

    def __init__(self, width: int = 400) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(96, width, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if x.size(2) < 5:
            raise RuntimeError("kernel of 5 frames")
        assert x.size(1) == 3 and x.dim() == 5 and rescale and resize and return_features
        x = x.to(torch.float32) / 127.5 - 1
        both = [F.adaptive_avg_pool3d(y, [1, 4, 4]).flatten(1) for y in (x, 4 * (x[:, :, 1:] - x[:, :, :-1]).abs())]
        return torch.cat(both, 1) @ self.weight


def script(module: nn.Module, path: Path) -> Path:
    """A real TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {
        "fid": script(Inception(), folder / "inception-2015-12-05.pt"),
        "fvd": script(Kinetics(), folder / "i3d_torchscript.pt"),
        "clip": tiny_clip(folder / "tiny-clip"),
    }


def tiny_clip(folder: Path) -> Path:
    """A real CLIP model and a tokenizer of a few words, saved as transformers does."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "<start>", "<end>", *WORDS]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    ).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **size,
        "vocab_size": 10,
        "max_position_embeddings": 8,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = {**size, "image_size": 16, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips() -> Videos:
    return np.stack([render(portrait_from_seed(2_970_000 + i), 9, 32, 32, 8.0) for i in range(24)])


def spoiled(clips: Videos, how: Callable[..., Tensor], amount: float) -> Videos:
    changed = torch.stack([how(clip, amount, torch.Generator().manual_seed(0)) for clip in to_unit(clips)])
    return (changed * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()


def test_networks_are_called_as_their_authors_do(files: dict[str, Path], clips: Videos) -> None:
    told: list[tuple[str, int, int]] = []
    fid, fvd = load_torchscript(files["fid"], INCEPTION, CPU), load_torchscript(files["fvd"], I3D, CPU)
    frames = fid.features(clips, lambda *what: told.append(what))  # every fourth frame of each clip
    assert frames.shape == (24 * 3, 2048) and frames.dtype == torch.float64
    whole = fvd.features(clips)
    assert whole.shape == (24, 400)
    assert [one[1:] for one in told] == [(21, 24), (24, 24)]  # two batches
    single = torch.from_numpy(clips[5, 8]).permute(2, 0, 1)[None]
    torch.testing.assert_close(
        frames[5 * 3 + 2], Inception()(single, return_features=True)[0].double(), atol=1e-5, rtol=0
    )
    clip = torch.from_numpy(clips[20]).permute(3, 0, 1, 2)[None]
    torch.testing.assert_close(whole[20], Kinetics()(clip, True, True, True)[0].double(), atol=1e-5, rtol=0)
    assert fid.words() == f"inception-2015-12-05.pt (SHA-256 {file_hash(files['fid'])[:12]})"


def test_distances_rise_with_what_goes_wrong(files: dict[str, Path], clips: Videos) -> None:
    networks = RealNetworks.load(str(files["fid"]), str(files["fvd"]), device=CPU)
    against = networks.statistics(clips)
    assert {name: stats.count for name, stats in against.items()} == {"fid_inception": 72, "fvd_i3d": 24}
    captions = [""] * len(clips)
    same, blurred, frozen = (
        networks.measure(some, captions, against)
        for some in (clips, spoiled(clips, blur, 1.0), spoiled(clips, freeze, 1.0))
    )
    assert same == pytest.approx({"fid_inception": 0, "fvd_i3d": 0}, abs=1e-6)
    assert blurred["fid_inception"] > 0.1 and frozen["fvd_i3d"] > 1  # a still is a good frame but a bad clip
    assert networks.measure(clips, captions, {}) == {}


def test_few_samples_and_many_give_the_same_distance() -> None:
    """tr((C_a^1/2 C_b C_a^1/2)^1/2) from the samples equals the one from the covariances."""
    rng = torch.Generator().manual_seed(0)
    a, b, many = (torch.randn(n, 12, generator=rng) * (1 + i) for i, n in enumerate((7, 5, 200)))
    few = [FeatureStats.of(x, singular=True) for x in (a, b)]
    assert all(stats.rows is not None for stats in few)
    full = FeatureStats.of(many)
    assert full.rows is None
    torch.testing.assert_close(few[0].covariance, torch.cov(a.double().t()))
    for one, other in ((few[0], few[1]), (few[0], full), (full, few[1])):
        plain = frechet_distance(replace(one, rows=None), replace(other, rows=None))
        assert frechet_distance(one, other) == pytest.approx(plain, abs=1e-4)
    assert frechet_distance(few[0], few[0]) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="needs at least 2 samples, but there is 1"):
        FeatureStats.of(a[:1], singular=True)


def test_clip_reads_captions_and_frames_as_transformers_does(files: dict[str, Path], clips: Videos) -> None:
    from transformers import AutoTokenizer, CLIPModel

    clip = load_clip(files["clip"], CPU)
    texts = ["a red square", "a blue talking portrait a blue talking portrait"]  # the second is cut at 8 tokens
    model = CLIPModel.from_pretrained(files["clip"])
    tokens = AutoTokenizer.from_pretrained(files["clip"])(
        texts, padding=True, truncation=True, max_length=8, return_tensors="pt"
    )
    x = to_clip_input(clips[:2, ::4].reshape(-1, 32, 32, 3), 16, MEAN, STD)
    with torch.inference_mode():
        out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=x)
    cosines = (out.image_embeds @ out.text_embeds.t()).view(2, 3, 2)  # clip, frame, text
    expected = float(torch.stack([cosines[0, :, 0], cosines[1, :, 1]]).mean())
    assert clip.score(clips[:2], texts) == pytest.approx(expected, abs=1e-5)
    assert clip.score(clips[:2], texts[::-1]) != pytest.approx(expected, abs=1e-4)
    many = clip.score(clips, texts * 12)  # in two batches
    halves = [clip.score(clips[start : start + 12], texts * 6) for start in (0, 12)]
    assert many == pytest.approx(sum(halves) / 2, abs=1e-6)
    with pytest.raises(UserError, match="2 clips but 1 captions"):
        clip.score(clips[:2], texts[:1])


@pytest.mark.parametrize("size", [(16, 16), (40, 56), (33, 20), (9, 12)])
def test_clip_input_is_that_of_pillow(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(60, 200, (*size, 3), dtype=np.uint8)  # Pillow clips between its passes
    h, w = size
    scaled = (16, 16 * w // h) if h <= w else (16 * h // w, 16)
    picture = Image.fromarray(frame).resize(scaled[::-1], Image.Resampling.BICUBIC)
    top, left = (scaled[0] - 16) // 2, (scaled[1] - 16) // 2
    square = np.asarray(picture)[top : top + 16, left : left + 16] / 255
    expected = torch.from_numpy((square - MEAN) / STD).permute(2, 0, 1).float()
    torch.testing.assert_close(to_clip_input(frame[None], 16, MEAN, STD)[0], expected, atol=0.03, rtol=0)  # two levels


def test_clip_takes_the_folder_s_own_normalisation(files: dict[str, Path], clips: Videos, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(files["clip"], tmp_path / "clip"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    clip = load_clip(folder, CPU)
    assert clip.mean == (0.5, 0.5, 0.5) == clip.std
    assert clip.score(clips[:2], ["a"] * 2) != load_clip(files["clip"], CPU).score(clips[:2], ["a"] * 2)


def wrong_files(folder: Path) -> dict[str, Path]:
    """What people may name by mistake."""
    good = script(Inception(), folder / "good.pt")
    state = Inception().state_dict()
    torch.save(state, folder / "zipped.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "stylegan3.pkl").write_bytes(pickle.dumps({"weights": 1}))
    (folder / "cut.pt").write_bytes(good.read_bytes()[:-400])
    from safetensors.torch import save_file

    save_file(state, folder / "weights.safetensors")
    (folder / "text.pt").write_text("<html>404</html>")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(folder / "evil.pt", "w") as target:
        for name in source.namelist():
            bad = b"cos\nsystem\n(S'touch evil'\ntR." if name.endswith("data.pkl") else source.read(name)
            target.writestr(name, bad)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.pt", r"missing\.pt \(evaluate\.fid_network\) is not there; name the inception-2015-12-05\.pt of"),
        ("zipped.pth", "is a pickled file, which can run code when it is read; name the inception-2015-12-05"),
        ("legacy.pth", "is a pickled file"),
        ("stylegan3.pkl", "is a pickled file"),
        ("cut.pt", "is cut off or broken; copy or download it again"),
        ("weights.safetensors", "is safetensors: weights without their network"),
        ("text.pt", "is not a TorchScript file"),
        ("evil.pt", "can't be loaded"),
    ],
)
def test_files_that_are_no_network(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong_files(tmp_path)
    with pytest.raises(UserError, match=words) as told:
        RealNetworks.load(fid=str(tmp_path / name), device=CPU)
    assert "\n" not in str(told.value) and not (tmp_path / "evil").exists()
    if name != "evil.pt":  # this one shows only when it is opened
        with pytest.raises(UserError, match=words):
            check_real_networks(fid=str(tmp_path / name))


def test_networks_that_are_others(files: dict[str, Path], clips: Videos, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"takes img, return_features, use_fp16, but I3D also takes rescale, resize; na"
    ):
        RealNetworks.load(fvd=str(files["fid"]), device=CPU)
    narrow = load_torchscript(script(Inception(width=64), tmp_path / "narrow.pt"), INCEPTION, CPU)
    with pytest.raises(
        UserError, match=r"gives something of shape \(60, 64\) for 60 frames, where InceptionV3 gives 2048"
    ):
        narrow.features(np.repeat(clips[:1], 60, 0)[:, :4])
    short = load_torchscript(files["fvd"], I3D, CPU)
    with pytest.raises(UserError, match=r"can't read clips of 3x4x32x32 values \(.*kernel of 5 frames\)") as told:
        short.features(clips[:, :4])
    assert "\n" not in str(told.value)


def broken_clip(files: dict[str, Path], folder: Path, how: str) -> None:
    shutil.copytree(files["clip"], folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "pickled":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "no weights":
        weights.unlink()
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "no config":
        config.unlink()
    elif how == "other model":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "siglip"}))
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "lacking":
        from safetensors.torch import load_file, save_file

        tensors = {k: v for k, v in load_file(weights).items() if k != "visual_projection.weight"}
        save_file(tensors, weights, {"format": "pt"})
    else:
        config.write_text("{")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("pickled", r"its weights are pickled \(pytorch_model\.bin\); only safetensors is read"),
        ("no weights", r"it has no model\.safetensors; only safetensors is read"),
        ("no tokenizer", r"has no tokenizer\.json; copy the tokenizer's files, too"),
        ("no config", r"has no config\.json; name the folder of a CLIP model"),
        ("other model", "holds a model of type siglip, not clip"),
        ("cut", "can't be loaded .*; copy or download it again"),
        ("lacking", r"lacks 1 of its weights, such as visual_projection\.weight"),
        ("not json", r"config\.json \(evaluate\.clip_model\) can't be read"),
    ],
)
def test_folders_that_are_no_clip(how: str, words: str, files: dict[str, Path], tmp_path: Path) -> None:
    broken_clip(files, tmp_path / "clip", how)
    with pytest.raises(UserError, match=words) as told:
        RealNetworks.load(clip=str(tmp_path / "clip"), device=CPU)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="is not a folder; name the folder of a CLIP model"):
        check_real_networks(clip=str(tmp_path / "nothing"))


class Silent:
    def __call__(self, what: str, done: int, count: int) -> None: ...


def test_a_table_of_own_clips(files: dict[str, Path], tmp_path: Path) -> None:
    """What the portrait networks cannot tell of the user's clips, the real ones do, and the table says by what."""
    render_folder(tmp_path / "clips", 6, 3, 9, 32, 32, 8.0)
    real = {f"evaluate.{key}": str(files[name]) for key, name in zip(KEYS, ("fid", "fvd", "clip"), strict=True)}
    size = {"data.frames": 9, "data.height": 32, "data.width": 32, "evaluate.clips": 50}
    recipe = check_recipe({**size, **real, "data.folder": str(tmp_path / "clips")}, "in a test")
    encoders = bundled_encoders()
    test = held_out(recipe, encoders, Silent())
    data, codec = data_row(test), codec_row(recipe, test, tmp_path)
    assert "clip_text" in data.values and "fid_inception" not in data.values  # it would be compared with itself
    assert set(REAL_UNITS) <= set(codec.values) and codec.values["fvd_i3d"] > 0
    models = [
        Row(name, steps, False, codec.values | {"fvd_i3d": fvd}, 50, data.captions, codec.shown, codec.judges)
        for name, steps, fvd in (("teacher, 8 steps", 8, 10.0), ("teacher, 2 steps", 2, 30.0), ("student", 2, 15.0))
    ]
    rows = [data, codec, *models]
    text = markdown_table(rows)
    head = text.splitlines()[0]
    assert all(f"| {REAL_TITLES[metric]} |" in head for metric in REAL_UNITS)
    assert "| **10.0** |" in text and "| **15.0** |" not in text
    for metric, name in (("fid_inception", "fid"), ("fvd_i3d", "fvd")):
        assert f"lower is better; by {files[name].name} (SHA-256 {file_hash(files[name])[:12]})." in text
        assert judges(rows)[metric].startswith(files[name].name)
    weights = file_hash(files["clip"] / "model.safetensors")[:12]
    assert f"higher is better; by tiny-clip (SHA-256 {weights})." in text
    about = about_clips(rows, recipe.data.folder)
    assert "There is no diversity and no adherence" in about and "FVD (I3D) and FID (InceptionV3): distances" in about
    headline = findings(rows)[0]
    assert headline.startswith("The 2-step student closes 75% of the gap") and "its FVD (I3D) is 15.0" in headline


def test_portraits_are_compared_with_others(files: dict[str, Path]) -> None:
    size = {"data.frames": 5, "data.height": 32, "data.width": 32, "evaluate.clips": 50}
    recipe = check_recipe({**size, "evaluate.fvd_network": str(files["fvd"])}, "in a test")
    test = held_out(recipe, bundled_encoders(), Silent())
    row = data_row(replace(test, starts=test.data[:, 0]))
    assert row.values["fvd_i3d"] > 0 and set(row.judges) == {"fvd_i3d"} and "clip_text" not in row.values
    assert row.values["identity"] > 0.9 and "identity" not in data_row(test).values
    assert "| identity |" in markdown_table([row])
