from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from w2svd_core.data import portraits
from w2svd_core.errors import UserError
from w2svd_core.metrics.measure import UNITS, Reference, measure
from w2svd_core.metrics.networks import Videos


@pytest.fixture(scope="module")
def reference(renders: Videos) -> Reference:
    return Reference.of(renders)


def test_data_against_itself(renders: Videos, captions: list[str], reference: Reference) -> None:
    numbers = measure(renders, captions, reference, group_size=1)
    assert set(numbers) == set(UNITS) - {"diversity"}
    assert numbers["frechet_video"] == pytest.approx(0, abs=1e-4)
    assert numbers["frechet_frame"] == pytest.approx(0, abs=1e-4)
    assert numbers["frozen_share"] == 0
    assert numbers["adherence"] > 0.9


def test_identical_frozen_clips(renders: Videos, reference: Reference) -> None:
    still = np.repeat(np.repeat(renders[:16, :1], 17, axis=1), 4, axis=0)
    texts = [portraits.caption(portraits.portrait_from_seed(seed)) for seed in range(16) for _ in range(4)]
    numbers = measure(still, texts, reference, group_size=4)
    assert set(numbers) == set(UNITS)
    assert numbers["diversity"] == pytest.approx(0, abs=1e-3)
    assert numbers["motion"] == numbers["flicker"] == 0
    assert numbers["frozen_share"] == 1
    assert numbers["frechet_video"] > 1


def test_few_clips_of_no_portraits(renders: Videos, reference: Reference) -> None:
    numbers = measure(renders[:4], ["a cat"] * 4, reference, group_size=4)
    assert set(numbers) == set(UNITS) - {"frechet_video", "frechet_frame", "adherence"}
    assert numbers["diversity"] > 0.5


def test_clips_without_a_reference(renders: Videos, captions: list[str], reference: Reference) -> None:
    numbers = measure(renders, captions, None, group_size=1)
    assert set(numbers) == {"motion", "frozen_share", "flicker", "saturation", "sharpness"}
    assert numbers.items() <= measure(renders, captions, reference, group_size=1).items()
    assert set(measure(renders[:1], ["a cat"], None, group_size=1)) == set(numbers)  # any number of clips
    with pytest.raises(UserError, match="have different captions"):
        measure(renders[:2], captions[:2], None, group_size=2)


def test_a_reference_is_saved_and_loaded(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    reference.save(path)
    again = Reference.load(path)
    assert torch.equal(again.video.covariance, reference.video.covariance)
    assert torch.equal(again.frame.mean, reference.frame.mean)
    assert (again.video.count, again.frame.count) == (64, 64 * 5)


def test_bad_groups_are_refused(renders: Videos, captions: list[str], reference: Reference) -> None:
    with pytest.raises(UserError, match="4 clips but 3 captions"):
        measure(renders[:4], captions[:3], reference, group_size=1)
    with pytest.raises(UserError, match="can't be cut into groups of 3"):
        measure(renders[:4], captions[:4], reference, group_size=3)
    with pytest.raises(UserError, match="clips 0 to 1 form a group but have different captions"):
        measure(renders[:4], captions[:4], reference, group_size=2)
    with pytest.raises(UserError, match="needs more than 48 samples, but there are 10"):
        Reference.of(renders[:10])
