"""Clusters of an adaptive softmax (Grave et al. 2017, arXiv:1609.04309): which words each has, and how narrow its weights are.

The vocabulary is in the order of frequency. Words below the first cutoff are in the head, which also judges the clusters; each
cluster projects the outputs of the last layer to a width of its own, as torch.nn.AdaptiveLogSoftmaxWithLoss does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from hvd_lm.errors import ConfigError


def clusters(cutoffs: Sequence[int], vocabulary_size: int) -> list[range]:
    """The words of each cluster."""
    return [range(start, stop) for start, stop in pairwise((*cutoffs, vocabulary_size))]


def widths(units: int, cutoffs: Sequence[int], division: float) -> list[int]:
    """To what outputs of so many units are projected for each cluster: units / D, units / D^2, ..., rounded down."""
    width, found = float(units), []
    for _ in cutoffs:
        width /= division
        found.append(int(width))
    return found


def check_clusters(units: int, cutoffs: Sequence[int], division: float, vocabulary_size: int | None) -> None:
    """Raises ConfigError if there can be no such clusters of a vocabulary, or of one whose size is still open (None)."""
    for error in _errors(units, cutoffs, division, vocabulary_size):
        raise ConfigError(error)


def _errors(units: int, cutoffs: Sequence[int], division: float, vocabulary_size: int | None) -> Iterator[str]:
    given = f"--adaptive-cutoffs {' '.join(map(str, cutoffs))}"
    if not cutoffs:
        yield "--softmax adaptive needs --adaptive-cutoffs, for example 2000 10000"
    if any(low >= high for low, high in pairwise((0, *cutoffs))):
        yield f"{given} must be above 0, and ascend"
    if vocabulary_size is not None and cutoffs[-1] >= vocabulary_size:
        yield f"{given} must end below the vocabulary of {vocabulary_size} words: take smaller ones, or fewer"
    if not 1 <= division < math.inf:
        yield f"--adaptive-division must be at least 1 and finite, not {division}"
    if widths(units, cutoffs, division)[-1] < 1:
        yield (
            f"--adaptive-division {division} leaves nothing of {units} units to the last of {len(cutoffs)} clusters: take less, or "
            "fewer --adaptive-cutoffs"
        )
