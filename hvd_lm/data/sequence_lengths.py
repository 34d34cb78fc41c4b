"""How long the sequences of an epoch's micro-batches are: T tokens each, or of random lengths about T.

With one length the same tokens of a text are always the last that gradients flow back to. Random lengths are those of Merity et al.
2017, "Regularizing and Optimizing LSTM Language Models" (arXiv:1708.02182, section 5): about T with probability 0.95, about T / 2
else, and normally distributed there; the learning rate is that of T times length / T, or short sequences would count for more.
They are functions of (seed, epoch, number of the micro-batch), so all ranks agree on them, and so does a run that goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Begins = Callable[[int], Sequence[int]]
"""Of streams of so many tokens, where each micro-batch begins, and last where the last one ends, there or behind it."""

WHOLE_SHARE, DEVIATION, SHORTEST = 0.95, 5.0, 5
"""Share of the sequences that are about T long, the others are about T / 2; standard deviation and least length, in tokens."""
_AT_ONCE = 1024
_KEY = 2**63 - 4
"""Tells the numbers drawn here from those of hvd_lm.model.noise."""


def constant_length(sequence_length: int) -> Begins:
    """T each."""
    return lambda tokens: range(0, (-(-tokens // sequence_length) + 1) * sequence_length, sequence_length)


def random_lengths(sequence_length: int, *, seed: int, epoch: int) -> Begins:
    """About T, in `epoch`, the first of which is 0."""

    def begins(tokens: int) -> list[int]:
        lengths = np.empty(0, np.int64)
        while lengths.sum() < tokens:
            lengths = np.concatenate([lengths, _drawn(sequence_length, seed, epoch, len(lengths) // _AT_ONCE)])
        ends = np.cumsum(lengths)
        return [0, *ends[: np.searchsorted(ends, tokens) + 1].tolist()] if tokens else [0]

    return begins


def _drawn(sequence_length: int, seed: int, epoch: int, block: int) -> NDArray[np.int64]:
    """`_AT_ONCE` lengths of an epoch, from number ``block * _AT_ONCE`` on."""
    generator = np.random.Generator(np.random.Philox(key=[seed, _KEY], counter=[0, 0, block, epoch]))
    means = np.where(generator.random(_AT_ONCE) < WHOLE_SHARE, sequence_length, sequence_length / 2)
    return np.maximum(SHORTEST, generator.normal(means, DEVIATION).astype(np.int64))
