"""Predictions of the next token, and drawing one of them in NumPy, so that the same seed gives the same text in every framework."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter, State
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import CheckpointError, require


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn."""

    temperature: float = 1.0
    """Divides the logits: below 1 likelier tokens, 0 always the likeliest."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that have this probability together (Holtzman et al. 2020, arXiv:1904.09751)."""
    seed: int = 1
    """Seed of the draws."""

    def __post_init__(self) -> None:
        require(0 <= self.temperature < np.inf, f"--temperature must not be negative, and finite, not {self.temperature}")
        require(self.top_k is None or self.top_k >= 1, f"--top-k must be at least 1, not {self.top_k}")
        require(self.top_p is None or 0 < self.top_p <= 1, f"--top-p must be in (0, 1], not {self.top_p}")
        require(self.seed >= 0, f"--seed must not be negative, not {self.seed}")


def predict(
    adapter: Adapter, tokenizer: Tokenizer, inputs_TB: NDArray[np.int32], state: State
) -> tuple[NDArray[np.float32], State]:
    """Logits ``[B, V]`` of the tokens that may follow `inputs_TB`, that of <unk> at -inf, and the state.

    Raises CheckpointError if the model has diverged.
    """
    logits_BV, state = adapter.next_logits(inputs_TB, state)
    if not np.isfinite(logits_BV).all():
        raise CheckpointError("the model's predictions are not finite, so it cannot write: take an earlier checkpoint")
    if tokenizer.unknown_id is not None:
        logits_BV[:, tokenizer.unknown_id] = -np.inf
    return logits_BV, state


def draw(logits_V: NDArray[np.floating], config: SamplingConfig, generator: np.random.Generator) -> int:
    """A token id. With top-k and top-p both, the k likeliest come first."""
    if config.temperature == 0:
        return int(logits_V.argmax())
    # Shifted first, so that a tiny temperature drives all but the likeliest to -inf, and none to +inf.
    with np.errstate(over="ignore"):
        scaled = (logits_V.astype(np.float64) - logits_V.max()) / config.temperature
    if config.top_k is not None and config.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -config.top_k)[-config.top_k]] = -np.inf
    probabilities = np.exp(scaled)
    if config.top_p is not None:
        probabilities[_tail(probabilities, config.top_p)] = 0
    # One uniform draw through the cumulative sum: the same token in both frameworks but for rounding at a boundary.
    cumulative = probabilities.cumsum()
    drawn = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
    # Rounding can point behind the last token that has any probability.
    return min(drawn, int(np.flatnonzero(probabilities)[-1]))


def _tail(weights_V: NDArray[np.float64], share: float) -> NDArray[np.intp]:
    """The tokens that are not among the likeliest with `share` of all weight."""
    order = np.argsort(-weights_V, kind="stable")
    cumulative = weights_V[order].cumsum()
    kept = int(np.searchsorted(cumulative, share * cumulative[-1], side="left")) + 1
    return order[kept:]
