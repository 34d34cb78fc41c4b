"""Beam search: the likeliest continuation that can be found by keeping the best few at every step; of several texts side by side.

Shapes: T time, N texts, K beams that grow, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.generation.sampling import predict

Ends = Callable[[tuple[int, ...]], bool]
"""Whether these tokens are a whole continuation, to be told after each."""


@dataclass(frozen=True)
class Found:
    """A continuation in tokens, and how likely the model holds it."""

    ids: tuple[int, ...]
    log_probability: float
    """Of all tokens, in nats."""

    def score(self, length_penalty: float) -> float:
        """Log-probability / tokens ** length_penalty: 0 for the plain one, 1 for the mean per token."""
        return float(self.log_probability / len(self.ids) ** length_penalty)


@dataclass(frozen=True)
class Hypothesis(Found):
    """A continuation and how likely the model holds it."""

    text: str
    """Without the stop string that ended it, whose tokens `ids` has."""


@dataclass
class _Beams:
    """Of one text."""

    length: int
    growing: list[Found] = field(default_factory=lambda: [Found((), 0.0)])
    ended: list[Found] = field(default_factory=list)

    def grow(self, log_probabilities_KV: NDArray[np.float64], beams: int, ends: Ends) -> list[int]:
        """By a token; of which of the growing each of those is now that grow on."""
        totals = np.array([its.log_probability for its in self.growing])[:, None] + log_probabilities_KV
        parents, grown = [], list[Found]()
        # Twice the beams: even if half of them end here, as many go on.
        for place in _largest(totals.ravel(), 2 * beams):
            parent, token = divmod(int(place), totals.shape[1])
            found = Found((*self.growing[parent].ids, token), float(totals[parent, token]))
            if ends(found.ids):
                self.ended.append(found)
            elif len(grown) < beams:
                grown.append(found)
                parents.append(parent)
        self.growing = grown
        return parents


def search(
    adapter: Adapter,
    tokenizer: Tokenizer,
    inputs_TN: NDArray[np.int32],
    *,
    beams: int,
    lengths: Sequence[int],
    length_penalty: float,
    ends: Ends,
    enough: int | None = None,
) -> list[list[Found]]:
    """Of each of N texts at most `beams` continuations, the best first.

    Each has as many tokens as `lengths` says of its text, or ends before. Of a text none is searched for any more once `enough` of
    them have ended, which then are all; None: whatever has ended, others may still be better.
    """
    of_texts = [_Beams(length) for length in lengths]
    logits_BV, state = predict(adapter, tokenizer, inputs_TN, adapter.zero_state(inputs_TN.shape[1]))
    at_work = list(of_texts)
    while at_work:
        log_probabilities_BV = _log_softmax(logits_BV)
        column, chosen, left = 0, list[int](), list[_Beams]()
        for its in at_work:
            rows = slice(column, column + len(its.growing))
            parents = its.grow(log_probabilities_BV[rows], beams, ends)
            if enough is not None and len(its.ended) >= enough:
                its.growing = []
            if its.growing and len(its.growing[0].ids) < its.length:
                left.append(its)
                chosen += [column + parent for parent in parents]
            column = rows.stop
        at_work = left
        if at_work:
            inputs_TB = np.array([[found.ids[-1] for its in at_work for found in its.growing]], np.int32)
            logits_BV, state = predict(adapter, tokenizer, inputs_TB, adapter.select_state(state, chosen))
    return [sorted(its.ended + its.growing, key=lambda found: -found.score(length_penalty))[:beams] for its in of_texts]


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

    def whole(ids: tuple[int, ...]) -> str:
        return "".join(tokenizer.pieces(ids, after))

    def until_stop(ids: tuple[int, ...]) -> str:
        text = whole(ids)
        return text[: min((cut for word in stop if (cut := text.find(word)) >= 0), default=len(text))]

    def ends(ids: tuple[int, ...]) -> bool:
        return bool(stop) and any(word in whole(ids) for word in stop)

    (found,) = search(
        adapter, tokenizer, inputs_T[:, None], beams=beams, lengths=[length], length_penalty=length_penalty, ends=ends
    )
    return [Hypothesis(its.ids, its.log_probability, until_stop(its.ids)) for its in found]


def _log_softmax(logits_BV: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits_BV.astype(np.float64) - logits_BV.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Places of the largest finite values, in falling order; the first of equal ones first."""
    count = min(count, len(values))
    candidates = np.sort(np.argpartition(-values, count - 1)[:count])
    ordered: NDArray[np.intp] = candidates[np.argsort(-values[candidates], kind="stable")]
    return ordered[np.isfinite(values[ordered])]
