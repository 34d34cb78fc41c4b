"""Beam search: the likeliest continuation that can be found by keeping the best few at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter, State
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.generation.sampling import predict


@dataclass(frozen=True)
class Hypothesis:
    """A continuation and how likely the model holds it."""

    text: str
    """Without the stop string that ended it."""
    ids: tuple[int, ...]
    """All tokens, those of the stop string included."""
    log_probability: float
    """Of all tokens, in nats."""

    def score(self, length_penalty: float) -> float:
        """Log-probability / tokens ** length_penalty: 0 for the plain one, 1 for the mean per token."""
        return float(self.log_probability / len(self.ids) ** length_penalty)


def beam_search(
    adapter: Adapter,
    tokenizer: Tokenizer,
    inputs_T: NDArray[np.int32],
    *,
    beams: int,
    length: int,
    length_penalty: float = 1.0,
    stop: Sequence[str] = (),
    after: str = "",
) -> list[Hypothesis]:
    """At most `beams` continuations of `inputs_T` (the text `after`), the best first.

    Each has `length` tokens, or ends with its first stop string.
    """
    growing: list[tuple[int, ...]] = [()]
    scores = np.zeros(1)
    state = adapter.zero_state(1)
    inputs_TB = inputs_T[:, None]
    ended: list[Hypothesis] = []
    for _ in range(length):
        log_probabilities_BV, state = _next(adapter, tokenizer, inputs_TB, state)
        totals = (scores[:, None] + log_probabilities_BV).ravel()
        vocabulary = log_probabilities_BV.shape[1]
        parents, kept = [], []
        grown: list[tuple[int, ...]] = []
        # Twice the beams: even if half of them end here, as many go on.
        for place in _largest(totals, 2 * beams):
            parent, token = divmod(int(place), vocabulary)
            ids = (*growing[parent], token)
            text = "".join(tokenizer.pieces(ids, after)) if stop else ""
            if found := [cut for word in stop if (cut := text.find(word)) >= 0]:
                ended.append(Hypothesis(text[: min(found)], ids, float(totals[place])))
            elif len(grown) < beams:
                grown.append(ids)
                parents.append(parent)
                kept.append(float(totals[place]))
        growing, scores = grown, np.array(kept)
        if not growing:
            break
        state = select(adapter, state, parents)
        inputs_TB = np.array([[ids[-1] for ids in growing]], np.int32)
    cut_off = [Hypothesis("".join(tokenizer.pieces(ids, after)), ids, float(s)) for ids, s in zip(growing, scores, strict=True)]
    return sorted(ended + cut_off, key=lambda found: -found.score(length_penalty))[:beams]


def _next(adapter: Adapter, tokenizer: Tokenizer, inputs_TB: NDArray[np.int32], state: State) -> tuple[NDArray[np.float64], State]:
    logits_BV, state = predict(adapter, tokenizer, inputs_TB, state)
    shifted = logits_BV.astype(np.float64) - logits_BV.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), state


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Places of the largest finite values, in falling order; the first of equal ones first."""
    count = min(count, len(values))
    candidates = np.sort(np.argpartition(-values, count - 1)[:count])
    ordered: NDArray[np.intp] = candidates[np.argsort(-values[candidates], kind="stable")]
    return ordered[np.isfinite(values[ordered])]


def select(adapter: Adapter, state: State, columns: Sequence[int]) -> State:
    """The states of these sequences, in this order; one may come several times."""
    return adapter.state_from_numpy(adapter.state_to_numpy(state)[:, list(columns)])
