"""LoRAs as matrices: sums, ranks, differences and merges, against dense matrices, peft and diffusers' own loader."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from kind import Kind, with_roles
from kinds import KINDS, kinds
from torch import Tensor, nn
from wan_kinds import new_wan

from w2svd_core import lora_algebra
from w2svd_core.backbones import backbone, wan_keys
from w2svd_core.backbones.base import Backbone
from w2svd_core.config import load_recipe
from w2svd_core.errors import UserError
from w2svd_core.lora_algebra import Lora
from w2svd_core.lora_files import LoraPair, load_into_peft, pairs_from_peft, read_lora, write_lora
from w2svd_core.places import rewritten
from w2svd_core.roles import matching

WAN = backbone("wan")
Pairs = dict[str, LoraPair]


def linears(model: nn.Module, family: Backbone | None = None) -> dict[str, nn.Linear]:
    """All of a model, or those that the family's adapters go into."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    wanted = matching(family.lora_targets) if family else None
    return {name: module for name, module in found.items() if wanted is None or wanted.fullmatch(name)}


def new_pairs(
    model: nn.Module, rank: int = 4, alpha: float = 6.0, seed: int = 1, strength: float = 0.2, family: Backbone = WAN
) -> Pairs:
    """A LoRA of every linear layer that adapters go into."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: LoraPair(
            strength * torch.randn(rank, layer.in_features, generator=rng),
            strength * torch.randn(layer.out_features, rank, generator=rng),
            alpha,
        )
        for name, layer in linears(model, family).items()
    }


def output(kind: Kind, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return kind.backbone.predict(model, *kind.backbone.probe(model))


def dense(pairs: Pairs) -> dict[str, Tensor]:
    return {name: pair.up.double() @ pair.down.double() * pair.alpha / pair.rank for name, pair in pairs.items()}


def write(path: Path, pairs: Pairs, format: str = "native", family: Backbone = WAN) -> Path:
    write_lora(path, pairs, None, format=format, key_map=family.keys)  # type: ignore[arg-type]
    return path


# ---- names and strengths


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors@0.8", ("a.safetensors", 0.8)),
        ("a@b.safetensors", ("a@b.safetensors", 1.0)),
        ("a@b.safetensors@-2", ("a@b.safetensors", -2.0)),
        ("some folder/a.safetensors@1e-1", ("some folder/a.safetensors", 0.1)),
    ],
)
def test_a_name_with_its_strength(text: str, found: tuple[str, float]) -> None:
    assert lora_algebra.parse_lora(text) == (Path(found[0]), found[1])


@pytest.mark.parametrize(("strength", "written"), [("1", "1"), ("0.80", "0.8"), ("0.3333333333", "0.3333333333")])
def test_a_strength_stays_as_it_is_when_places_are_rewritten(strength: str, written: str) -> None:
    recipe = load_recipe("portraits", {"model.loras": f"a.safetensors@{strength}"})
    assert rewritten(recipe, lambda key, place: place).model.loras == (f"a.safetensors@{written}",)


@pytest.mark.parametrize("text", ["", "@0.5", " @1", "a.safetensors@nan", "a.safetensors@-inf"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="LoRA"):
        lora_algebra.parse_lora(text)


# ---- factors


def test_a_stack_is_the_sum() -> None:
    model = new_wan()
    one, two = new_pairs(model), new_pairs(model, rank=3, alpha=1.5, seed=2)
    del two["blocks.0.attn1.to_q"]
    sum_of = lora_algebra.stacked([one, lora_algebra.scaled(two, -0.7)])
    assert list(sum_of) == list(one)
    assert {pair.rank for name, pair in sum_of.items() if name in two} == {7}
    assert all(pair.alpha == pair.rank and pair.up.dtype == torch.float32 for pair in sum_of.values())
    wanted = {name: d - 0.7 * dense(two)[name] if name in two else d for name, d in dense(one).items()}
    for name, found in dense(sum_of).items():
        assert (found - wanted[name]).abs().max() < 1e-6


@pytest.mark.parametrize("rank", [4, 5, 40])
def test_a_higher_rank_is_exact(rank: int) -> None:
    pairs = new_pairs(new_wan())
    wide, error = lora_algebra.at_rank(pairs, rank)
    assert error == 0 and list(wide) == list(pairs)
    assert all(pair.rank == pair.alpha == rank for pair in wide.values())
    for name, found in dense(wide).items():
        assert (found - dense(pairs)[name]).abs().max() < 1e-6


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_lower_rank_is_the_nearest_there_is(rank: int) -> None:
    pairs = new_pairs(new_wan(), rank=6)
    fewer, error = lora_algebra.at_rank(pairs, rank)
    lost = whole = 0.0
    for name, change in dense(pairs).items():
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        assert fewer[name].rank == fewer[name].alpha == rank
        assert (dense(fewer)[name] - best).abs().max() < 1e-5
        assert torch.allclose(fewer[name].down.norm(dim=1), fewer[name].up.norm(dim=0), atol=1e-5)  # half on each side
        lost, whole = lost + float((change - best).square().sum()), whole + float(change.square().sum())
    assert error == pytest.approx((lost / whole) ** 0.5, abs=1e-6) and 0 < error < 1


def test_a_rank_above_a_layers_width() -> None:
    rng = torch.Generator().manual_seed(0)
    pair = LoraPair(torch.randn(9, 5, generator=rng), torch.randn(3, 9, generator=rng), 9.0)
    found, error = lora_algebra.at_rank({"x": pair}, 7)
    assert found["x"].rank == 7 and error < 1e-12
    assert (found["x"].delta() - pair.delta()).abs().max() < 1e-5


def test_ranks_and_zeros() -> None:
    nothing = {"x": LoraPair(torch.randn(4, 5), torch.zeros(6, 4), 4.0)}
    found, error = lora_algebra.at_rank(nothing, 2)
    assert error == 0 and not found["x"].up.any()
    weights = {"x.weight": torch.zeros(2, 2)}
    for refused in (
        lambda: lora_algebra.at_rank(nothing, 0),
        lambda: lora_algebra.difference(weights, weights, ["x"], 0),
    ):
        with pytest.raises(UserError, match="rank 0"):
            refused()


@pytest.mark.parametrize("rank", [2, 6, 8])
def test_a_file_for_an_adapter_of_any_rank(tmp_path: Path, rank: int) -> None:
    pairs = new_pairs(new_wan(), rank=6, alpha=3)
    read = lora_algebra.read_at_rank(write(tmp_path / "x.safetensors", pairs), wan_keys, rank)
    assert set(read) == set(pairs) and {pair.rank for pair in read.values()} == {min(rank, 6)}
    model = with_roles(new_wan(), fresh=True, student_rank=rank)
    load_into_peft(model.base, "generator", read)
    filled = pairs_from_peft(model.base, "generator")
    wanted = dense(lora_algebra.at_rank(pairs, rank)[0])
    for name, pair in filled.items():
        assert (dense(filled)[name] - wanted[name]).abs().max() < 1e-6
        assert pair.down.any(dim=1).all()  # rows that are over can learn


# ---- differences


def changed(model: nn.Module, size: float = 0.1) -> nn.Module:
    """A copy whose every parameter is another."""
    student = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(5)
    for parameter in student.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=rng)
    return student


@kinds
def test_a_difference_at_full_rank_is_the_change(kind: Kind) -> None:
    model = kind.new()
    student = changed(model)
    names = [name for name, layer in linears(model).items() if min(layer.weight.shape) <= 1000]
    found = lora_algebra.difference(model.state_dict(), student.state_dict(), names, 1000)
    assert set(found.pairs) == set(names) and found.error < 1e-6
    whole = lora_algebra.merged(model.state_dict(), found.pairs)
    for name in names:
        assert (whole[f"{name}.weight"] - student.state_dict()[f"{name}.weight"]).abs().max() < 1e-6
    wanted = {name: student.state_dict()[name] - before for name, before in model.state_dict().items()}
    elsewhere = [change for name, change in wanted.items() if name.removesuffix(".weight") not in names]
    share = (
        torch.cat([x.flatten() for x in elsewhere]).norm() / torch.cat([x.flatten() for x in wanted.values()]).norm()
    )
    assert found.outside == pytest.approx(float(share), rel=1e-5)


def test_a_difference_at_a_low_rank_and_of_few_layers() -> None:
    model = new_wan()
    student = copy.deepcopy(model)
    pairs = {name: pair for name, pair in new_pairs(model).items() if name.startswith("blocks.1.attn1")}
    lora_algebra.merge_into(student, [Lora(pairs)])
    exact = lora_algebra.difference(model.state_dict(), student.state_dict(), list(linears(model)), 4)
    assert set(exact.pairs) == set(pairs) and exact.error < 1e-5 and exact.outside == 0
    half = lora_algebra.difference(model.state_dict(), student.state_dict(), list(linears(model)), 2)
    assert half.error == pytest.approx(lora_algebra.at_rank(pairs, 2)[1], abs=1e-5)


def test_large_layers_are_nearly_as_near(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    decay = torch.arange(1, 301) ** -0.5
    change = torch.randn(300, 300, generator=rng) * decay @ torch.randn(300, 300, generator=rng)
    before, after = {"x.weight": torch.zeros(300, 300)}, {"x.weight": change}
    exact = lora_algebra.difference(before, after, ["x"], 8)
    monkeypatch.setattr(lora_algebra, "SKETCHED", 256)
    state = torch.get_rng_state()
    sketched = lora_algebra.difference(before, after, ["x"], 8)
    again = lora_algebra.difference(before, after, ["x"], 8)
    assert exact.error <= sketched.error < 1.003 * exact.error
    assert torch.equal(sketched.pairs["x"].up, again.pairs["x"].up) and torch.equal(state, torch.get_rng_state())


def test_two_models_that_are_not_one() -> None:
    small, large = new_wan(), new_wan(ffn_dim=48)
    with pytest.raises(UserError, match=r"is \(32, 24\) in the one model|is \(32,\) in the one model"):
        lora_algebra.difference(small.state_dict(), large.state_dict(), [], 2)
    with pytest.raises(UserError, match=r"only one of the two models has blocks\.2"):
        lora_algebra.difference(small.state_dict(), new_wan(num_layers=3).state_dict(), [], 2)


# ---- merges


@pytest.mark.parametrize(
    ("kind", "format"),
    [(kind, "diffusers") for kind in KINDS] + [(kind, "native") for kind in KINDS if kind.native_loras],
    ids=str,
)
def test_a_merge_equals_diffusers_own_loader(tmp_path: Path, kind: Kind, format: str) -> None:
    assert kind.lora_pipeline is not None
    model = kind.new()
    path = write(tmp_path / "x.safetensors", new_pairs(model, family=kind.backbone), format, kind.backbone)
    theirs = copy.deepcopy(model)
    kind.lora_pipeline(theirs).load_lora_weights(str(tmp_path), weight_name=path.name)
    plain = output(kind, model)
    lora_algebra.merge_files(model, [str(path)], kind.backbone.keys)
    assert (output(kind, model) - output(kind, theirs)).abs().max() < 1e-5
    assert (output(kind, model) - plain).abs().max() > 1e-2


@kinds
def test_merged_acting_and_stacked_are_one(kind: Kind, tmp_path: Path) -> None:
    model, family = kind.new(), kind.backbone
    one, two = new_pairs(model, family=family), new_pairs(model, rank=2, seed=3, family=family)
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    texts = [str(write(paths[0], one, family=family)), f"{write(paths[1], two, family=family)}@-0.5"]
    plain, weights = output(kind, model), copy.deepcopy(model.state_dict())
    loras = [lora_algebra.open_lora(text, family.keys)[0] for text in texts]
    with lora_algebra.acting(model, loras):
        acted = output(kind, model)
    assert torch.equal(output(kind, model), plain)
    lora_algebra.merge_files(model, texts, family.keys)
    assert (output(kind, model) - acted).abs().max() < 1e-5 and (acted - plain).abs().max() > 1e-2
    whole = lora_algebra.merged(weights, lora_algebra.stacked([one, lora_algebra.scaled(two, -0.5)]))
    for name, weight in model.state_dict().items():
        assert (whole[name] - weight).abs().max() < 1e-6


@kinds
@pytest.mark.parametrize("format", ["native", "diffusers"])
def test_an_adapter_comes_back_from_its_file(kind: Kind, format: str, tmp_path: Path) -> None:
    shared = kind.with_roles(critic_rank=0)
    pairs = pairs_from_peft(shared.base, "generator")
    read, _ = read_lora(write(tmp_path / "x.safetensors", pairs, format, kind.backbone), kind.backbone.keys)
    again = kind.with_roles(fresh=True, critic_rank=0)
    matched, unmatched = load_into_peft(again.base, "generator", read)
    assert set(matched) == set(pairs) and unmatched == []
    x_t, sigma, condition = kind.backbone.probe(shared.base)
    with torch.no_grad():
        found, expected = (model.predict("generator", x_t, sigma, condition) for model in (again, shared))
        assert (found - expected).abs().max() < 1e-6
        assert (expected - shared.predict("teacher", x_t, sigma, condition)).abs().max() > 1e-2


def test_one_cast() -> None:
    wide = new_wan()
    model = copy.deepcopy(wide).to(torch.bfloat16)
    loras = [Lora(new_pairs(wide, seed=seed, strength=0.05)) for seed in range(4)]
    exact = {name: layer.weight.double() for name, layer in linears(model).items()}
    for lora in loras:
        exact |= {name: exact[name] + change for name, change in dense(dict(lora.pairs)).items()}
    lora_algebra.merge_into(model, loras)
    for name, layer in linears(model).items():
        assert layer.weight.dtype == torch.bfloat16
        apart = (layer.weight.double() - exact[name]).abs()
        assert (apart <= exact[name].abs() * 2**-8 + 1e-6).all()  # half a step of bf16: more casts would add theirs


def test_a_lora_of_another_model(tmp_path: Path) -> None:
    model = new_wan()
    before = copy.deepcopy(model.state_dict())
    good = write(tmp_path / "good.safetensors", new_pairs(model))
    image = write(tmp_path / "image.safetensors", new_pairs(new_wan("i2v")))
    large = write(tmp_path / "large.safetensors", new_pairs(new_wan(ffn_dim=48)))
    for bad, sentence in [
        (image, r"image\.safetensors has the layer blocks\.0\.attn2\.add_k_proj, which this model lacks"),
        (large, r"large\.safetensors has the layer blocks\.0\.ffn\.net\.0\.proj 24 -> 48 wide, this model 24 -> 32"),
        (tmp_path / "none.safetensors", r"none\.safetensors is not there"),
    ]:
        with pytest.raises(UserError, match=sentence):
            lora_algebra.merge_files(model, [str(good), str(bad)], wan_keys)
    with pytest.raises(UserError, match="24 -> 48 wide"):
        lora_algebra.merged(before, new_pairs(new_wan(ffn_dim=48)))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_sum_that_its_type_cannot_hold() -> None:
    model = new_wan().to(torch.float16)
    pairs = {name: pair for name, pair in new_pairs(model).items() if name == "blocks.0.attn1.to_q"}
    with pytest.raises(
        UserError, match=r"with loud in it the layer blocks\.0\.attn1\.to_q does not fit into torch\.float16"
    ):
        lora_algebra.merge_into(model, [Lora(pairs, 1e7, "loud")])
