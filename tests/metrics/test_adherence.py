from __future__ import annotations

import pytest
import torch

from w2svd_core.data import portraits
from w2svd_core.errors import UserError
from w2svd_core.metrics.adherence import adherence, probe_accuracy
from w2svd_core.metrics.networks import Reading, Videos, load_network, read_videos

BARS = {name: 0.85 for name in portraits.ATTRIBUTES} | {"skin": 0.9, "wall": 0.95, "clothes": 0.9}


def test_the_probe_reads_held_out_renders(renders: Videos, truth: list[dict[str, str]], captions: list[str]) -> None:
    network = load_network("video")
    reading = read_videos(network, renders)
    accuracy = probe_accuracy(reading, network.attributes, truth)
    assert {name: share for name, share in accuracy.items() if share < BARS[name]} == {}
    share = adherence(reading, network.attributes, captions)
    assert share is not None and share >= 0.93
    wrong = adherence(reading, network.attributes, captions[1:] + captions[:1])
    assert wrong is not None and wrong < 0.5


def test_only_named_attributes_count() -> None:
    """Two clips read as black hair and glasses; the captions name three attributes, two of them as read."""
    vocabulary = {"hair colour": ("black", "red"), "glasses": ("yes", "no"), "action": ("talking", "nodding")}
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    reading = Reading(torch.zeros(2, 4), dict.fromkeys(vocabulary, first), torch.zeros(2, 1))
    texts = ["a person with black hair and glasses", "a person, nodding"]
    assert [portraits.parse_caption(text) for text in texts] == [
        {"hair colour": "black", "glasses": "yes"},
        {"action": "nodding"},
    ]
    assert adherence(reading, vocabulary, texts) == pytest.approx(2 / 3)
    assert adherence(reading, vocabulary, ["a cat", "a dog"]) is None


def test_a_missing_caption_is_refused() -> None:
    with pytest.raises(UserError, match="2 clips but 1 captions"):
        adherence(Reading(torch.zeros(2, 4), {}, torch.zeros(2, 1)), {}, ["a person"])
