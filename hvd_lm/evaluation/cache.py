"""Neural cache: words that followed similar states before become likelier.

Grave et al. 2017, arXiv:1612.04426, equations 2 to 4. With h_i the output of the last layer before token x_(i+1):

    p_cache(w) ~ sum over the last n positions i with x_(i+1) = w of exp(theta * h_t . h_i)
    p(w) = (1 - lambda) * p_model(w) + lambda * p_cache(w)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter
from hvd_lm.data.streams import Streams, Tokens
from hvd_lm.errors import require
from hvd_lm.model.weights import Array


@dataclass(frozen=True)
class CacheConfig:
    """Neural cache: look back at what followed similar states."""

    cache_size: int = 0
    """Tokens that a neural cache looks back at (Grave et al. 2017, arXiv:1612.04426), for example 2000; 0 for none.
    Reads the text in one stream, on one rank."""
    cache_theta: float = 0.3
    """How much the cache prefers the most similar states (theta)."""
    cache_lambda: float = 0.1
    """Share of the prediction that is the cache's (lambda)."""

    def __post_init__(self) -> None:
        require(self.cache_size >= 0, f"--cache-size must not be negative, not {self.cache_size}")
        require(0 <= self.cache_theta < np.inf, f"--cache-theta must not be negative, and finite, not {self.cache_theta}")
        require(0 <= self.cache_lambda < 1, f"--cache-lambda must be in [0, 1), not {self.cache_lambda}")


def evaluate_with_cache(adapter: Adapter, tokens: Tokens, first_input: int, config: CacheConfig, sequence_length: int) -> float:
    """Sum of the cross-entropy (nats) of `tokens`."""
    streams = Streams(tokens, first_input=first_input, batch_size=1, sequence_length=sequence_length)
    cache = NeuralCache(config, adapter.model.widths[-1])
    state = adapter.zero_state(1)
    total = 0.0
    for index in range(streams.micro_batches):
        batch = streams.micro_batch(index)
        outcome = adapter.evaluate(batch.inputs_TB, batch.targets_TB, state)
        state = outcome.state
        count = streams.target_count(index, index + 1)
        total += cache.losses(outcome.losses_TB[:count, 0], outcome.outputs_TBH[:count, 0], batch.targets_TB[:count, 0]).sum()
    return float(total)


class NeuralCache:
    """The last states, and what followed them."""

    def __init__(self, config: CacheConfig, width: int) -> None:
        self._config = config
        self._keys_NH: Array = np.empty((0, width), np.float32)
        self._followers_N: NDArray[np.int32] = np.empty(0, np.int32)

    def losses(self, losses_T: Array, outputs_TH: Array, targets_T: NDArray[np.int32]) -> NDArray[np.float64]:
        """Cross-entropy of the targets under model and cache together, given that under the model; then remembers them."""
        size, steps, known = self._config.cache_size, len(targets_T), len(self._followers_N)
        keys_NH = np.concatenate((self._keys_NH, outputs_TH))
        followers_N = np.concatenate((self._followers_N, targets_T))
        scores_TN = self._config.cache_theta * (outputs_TH @ keys_NH.T).astype(np.float64)
        # Position t sees the `size` ones before it, and not what follows itself.
        age_TN = known + np.arange(steps)[:, None] - np.arange(known + steps)
        scores_TN[(age_TN < 1) | (age_TN > size)] = -np.inf
        largest_T = np.where(known + np.arange(steps) > 0, scores_TN.max(axis=1), 0.0)
        weights_TN = np.exp(scores_TN - largest_T[:, None])
        all_T = weights_TN.sum(axis=1)
        hits_T = np.where(followers_N == targets_T[:, None], weights_TN, 0.0).sum(axis=1)
        share_T = np.where(all_T > 0, self._config.cache_lambda, 0.0)
        from_cache_T = np.divide(hits_T, all_T, out=np.zeros_like(all_T), where=all_T > 0)
        self._keys_NH, self._followers_N = keys_NH[-size:], followers_N[-size:]
        with np.errstate(divide="ignore"):
            mixed: NDArray[np.float64] = -np.logaddexp(np.log1p(-share_T) - losses_T, np.log(share_T * from_cache_T))
        return mixed
