"""The loss of every token of lines, each read by itself: in batches of lines of about one length, divided over the ranks.

Shapes: N tokens of all lines, T time, B lines that this rank reads side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter
from hvd_lm.data.sources import IGNORED
from hvd_lm.model.weights import Array

MOST_TOKENS = 1 << 18
"""Of a batch on a rank: a line that is far longer than others is read with fewer beside it."""


def line_losses(
    adapter: Adapter, lines: Sequence[NDArray[np.int32]], first_input: int, batch_size: int, sequence_length: int
) -> Array:
    """Cross-entropy (nats) of every token of `lines`, one after the other: ``float32 [N]``, the same on all ranks. Collective.

    Each line, which has a token at least, begins with the zero state and `first_input`. All ranks have the same lines; each reads
    some, all with micro-batches of one shape.
    A rank that cannot read notes it (`job.trouble`): the caller lets the ranks agree.
    """
    job, readers = adapter.job, adapter.job.topology.readers
    lengths = np.array([len(line) for line in lines])
    starts = np.cumsum(lengths) - lengths
    losses_N = np.zeros(int(lengths.sum()), np.float32)
    order = np.argsort(-lengths, kind="stable")
    with job.trouble.noted():
        while len(order):
            side_by_side = max(1, min(batch_size, MOST_TOKENS // int(lengths[order[0]])))
            of_all, order = np.split(order, [side_by_side * readers])
            mine = of_all[job.topology.reader :: readers]
            width = -(-len(of_all) // readers)
            shape = (int(lengths[of_all[0]]), width)
            inputs_TB, targets_TB = np.full(shape, first_input, np.int32), np.full(shape, IGNORED, np.int32)
            for column, line in enumerate(mine):
                targets_TB[: lengths[line], column] = lines[line]
                inputs_TB[1 : lengths[line], column] = lines[line][:-1]
            losses_TB = _losses(adapter, inputs_TB, targets_TB, sequence_length)
            for column, line in enumerate(mine):
                losses_N[starts[line] : starts[line] + lengths[line]] = losses_TB[: lengths[line], column]
    # Every token is read by one rank, and 0 on the others.
    return job.sum(losses_N)


def _losses(adapter: Adapter, inputs_TB: NDArray[np.int32], targets_TB: NDArray[np.int32], sequence_length: int) -> Array:
    """Of one batch, so many tokens at a time."""
    state, parts = adapter.zero_state(inputs_TB.shape[1]), []
    for begin in range(0, len(inputs_TB), sequence_length):
        adapter.job.watch.sign()
        part = slice(begin, begin + sequence_length)
        outcome = adapter.evaluate(inputs_TB[part], targets_TB[part], state)
        state = outcome.state
        parts.append(outcome.losses_TB)
    return np.concatenate(parts)
