"""Where a model is after each of several texts: what it says next, and its state. Texts that end together are read together.

Texts of a batch are aligned at their ends. Each joins the others, with the zero state, where it begins; so no state runs over the
end of its text, and nothing is padded.

Shapes: T time, B texts read side by side, N texts, F figures of each, U units of all layers, V what the output judges: words, or
classes; 2: h and c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter
from hvd_lm.model.stages import state_size
from hvd_lm.model.weights import Array


@dataclass(frozen=True)
class Endings:
    """Of one batch."""

    texts: NDArray[np.int64]
    """Their numbers, [B]."""
    logits_BV: Array
    """After the last token."""
    state_2BU: Array


def of_every_text(
    adapter: Adapter,
    texts: Sequence[NDArray[np.int32]],
    batch_size: int,
    sequence_length: int,
    width: int,
    figures: Callable[[Endings], Array],
) -> Array:
    """What `figures`, ``float32 [B, F]``, finds after each of `texts`, in their order: ``float32 [N, F]``, the same on all ranks;
    F is `width`. Collective.

    A rank that cannot read notes it (`job.trouble`): the caller lets the ranks agree.
    """
    found_NF = np.zeros((len(texts), width), np.float32)
    with adapter.job.trouble.noted():
        for of in endings(adapter, texts, batch_size, sequence_length):
            found_NF[of.texts] = figures(of)
    # Every text is read by one rank, and 0 on the others.
    return adapter.job.sum(found_NF)


def endings(adapter: Adapter, texts: Sequence[NDArray[np.int32]], batch_size: int, sequence_length: int) -> Iterator[Endings]:
    """Of this rank's part of `texts`, each with a token at least; so many side by side, and so many tokens of each at once.

    Not collective. The parts of all ranks are all texts.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    topology = adapter.job.topology
    mine = np.argsort(-lengths, kind="stable")[topology.reader :: topology.readers]
    for first in range(0, len(mine), batch_size):
        batch = mine[first : first + batch_size]
        yield _read(adapter, batch, [texts[index] for index in batch], sequence_length)


def _read(adapter: Adapter, numbers: NDArray[np.int64], texts: Sequence[NDArray[np.int32]], sequence_length: int) -> Endings:
    """`texts` from the longest to the shortest."""
    end = len(texts[0])
    begins = np.array([end - len(text) for text in texts])
    state_2BU = np.zeros((2, 0, state_size(adapter.model)), np.float32)
    logits_BV = np.zeros((0, 0), np.float32)
    at = 0
    while at < end:
        adapter.job.watch.sign()
        reading = int(np.searchsorted(begins, at, side="right"))
        joining = np.zeros((2, reading - state_2BU.shape[1], state_2BU.shape[2]), np.float32)
        stop = min(at + sequence_length, int(begins[reading]) if reading < len(texts) else end)
        columns = [text[at - begin : stop - begin] for text, begin in zip(texts[:reading], begins, strict=False)]
        state = adapter.state_from_numpy(np.concatenate([state_2BU, joining], axis=1))
        logits_BV, state = adapter.next_logits(np.stack(columns, axis=1), state)
        state_2BU = adapter.state_to_numpy(state)
        at = stop
    return Endings(numbers, logits_BV, state_2BU)
