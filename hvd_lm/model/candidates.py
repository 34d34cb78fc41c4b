"""Candidates of a sampled softmax: the words that a training step judges its targets against, in place of the whole vocabulary.

Drawn log-uniformly (Zipf), without repetition, as by TensorFlow's ``log_uniform_candidate_sampler``: word w of V with probability

    p(w) = log((w + 2) / (w + 1)) / log(V + 1)

which supposes a vocabulary in the order of frequency. Draws go on until there are enough different words; with n draws the expected
count of a word is Q(w) = 1 - (1 - p(w))^n. Training subtracts log Q(w) from its logit, so that a frequent word does not suffer for
being a candidate more often (Jean et al. 2015, "On Using Very Large Target Vocabulary", arXiv:1412.2007).

A pure function of (seed, micro-batch), the same for all streams, frameworks and ranks, so that a resumed run needs no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig

_STREAM = 2**63 - 1
"""In place of a stream's number: no mask of dropout shares its random numbers."""


@dataclass(frozen=True)
class Candidates:
    """Of one micro-batch."""

    words_S: NDArray[np.int32]
    """Ascending, each once."""
    draws: int
    """That it took to find them."""
    vocabulary_size: int

    def log_expected(self, words: NDArray[np.int32]) -> NDArray[np.float32]:
        """Log of the expected count, of words of any shape; of ignored ones (< 0) that of word 0."""
        word = np.maximum(words, 0).astype(np.float64)
        probability = np.log1p(1 / (word + 1)) / math.log(self.vocabulary_size + 1)
        logs: NDArray[np.float32] = np.log(-np.expm1(self.draws * np.log1p(-probability))).astype(np.float32)
        return logs


def candidates(model: ModelConfig, *, micro_batch: int, seed: int) -> Candidates | None:
    """Of the micro-batch with this number since the run began; None where the softmax is not sampled."""
    if model.softmax != "sampled":
        return None
    assert model.vocabulary_size is not None
    size, count = model.vocabulary_size, model.sampled_words
    generator = np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 0, micro_batch]))
    drawn = np.empty(0, np.int64)
    while True:
        levels = generator.random(2 * count)
        # The last word's end is V only up to rounding.
        more = np.minimum(np.expm1(levels * math.log(size + 1)).astype(np.int64), size - 1)
        drawn = np.concatenate((drawn, more))
        _, first_draws = np.unique(drawn, return_index=True)
        if len(first_draws) >= count:
            first_draws.sort()
            draws = int(first_draws[count - 1]) + 1
            return Candidates(np.unique(drawn[:draws]).astype(np.int32), draws, size)
