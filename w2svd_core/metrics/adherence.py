"""Does the clip show what its caption says? The attribute heads of the portrait video network are the probe.

The probe is a linear reading of 48 features and is wrong now and then; `probe_accuracy` says how often on
renders whose attributes are known. It knows rendered portraits and their closed vocabulary only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..data import portraits
from ..errors import UserError
from .networks import Reading


def adherence(reading: Reading, vocabulary: Mapping[str, Sequence[str]], captions: Sequence[str]) -> float | None:
    """The share in [0, 1] of attributes named by the captions that the probe reads as named, over all clips.

    Args:
        reading: of the video network, N clips.
        vocabulary: the network's classes of each attribute.
        captions: N captions.

    Returns:
        The share, or None where no caption names an attribute (captions that are not of portraits).

    Raises:
        UserError: the numbers of clips and captions differ.
    """
    if len(captions) != len(reading.features):
        raise UserError(f"there are {len(reading.features)} clips but {len(captions)} captions; give one for each clip")
    read = probe(reading, vocabulary)
    named = right = 0
    for index, text in enumerate(captions):
        for name, value in portraits.parse_caption(text).items():
            named += 1
            right += read[name][index] == value
    return right / named if named else None


def probe(reading: Reading, vocabulary: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The value that the probe reads for each attribute of each clip: {attribute: N values}."""
    return {
        name: [vocabulary[name][int(index)] for index in logits.argmax(1)] for name, logits in reading.logits.items()
    }


def probe_accuracy(
    reading: Reading, vocabulary: Mapping[str, Sequence[str]], truth: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """The share of clips that the probe reads right, for each attribute, given the true values of N clips."""
    read = probe(reading, vocabulary)
    return {
        name: sum(value == true[name] for value, true in zip(values, truth, strict=True)) / len(truth)
        for name, values in read.items()
    }
