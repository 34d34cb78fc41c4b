"""Contiguous streams: how a text is cut into micro-batches, the same for any split of the batch over ranks.

A text of n tokens gives n targets; the input of each is the token before it (<eos> before the first). The targets are
cut into S = R * B contiguous streams (R data ranks, B sequences a rank), the first n mod S of them one token longer.
Data rank r reads the streams r*B ... r*B + B-1, T tokens at a time. The last micro-batch of an epoch is padded with
`IGNORED` targets, so that every token is a target exactly once, shapes never change, and all ranks agree on the number of
micro-batches. (R=1, B=8) and (R=2, B=4) see the same tokens.

Shapes: T time, B streams of this rank, S all streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -1
"""Target of a padded position: no loss, no gradient, not counted."""


@dataclass(frozen=True)
class MicroBatch:
    """One step through the streams of a rank."""

    inputs_TB: NDArray[np.int32]
    targets_TB: NDArray[np.int32]


@dataclass(frozen=True)
class Window:
    """The micro-batches of one optimizer step, ``start <= index < stop`` within the epoch, and the divisor of its gradient."""

    start: int
    stop: int
    target_count: int
    """Targets in the window on all data ranks."""


class Streams:
    """The streams that one data rank reads from `tokens`."""

    def __init__(
        self,
        tokens: NDArray[np.integer],
        *,
        first_input: int,
        batch_size: int,
        sequence_length: int,
        data_rank: int = 0,
        data_size: int = 1,
    ) -> None:
        """`tokens` are the n targets, ``[n]``; `first_input` precedes the first of them."""
        self.tokens = tokens
        self.first_input = first_input
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        count = batch_size * data_size
        share, longer = divmod(len(tokens), count)
        self.lengths_S: NDArray[np.int64] = np.full(count, share, dtype=np.int64)
        self.lengths_S[:longer] += 1
        self.starts_S: NDArray[np.int64] = np.concatenate(([0], np.cumsum(self.lengths_S)[:-1]))
        self.first_stream = data_rank * batch_size

    @property
    def stream_ids(self) -> range:
        """Which of the S streams this rank reads."""
        return range(self.first_stream, self.first_stream + self.batch_size)

    @property
    def micro_batches(self) -> int:
        """Micro-batches in an epoch, the same on all ranks."""
        return -(-int(self.lengths_S[0]) // self.sequence_length)

    def micro_batch(self, index: int) -> MicroBatch:
        """Micro-batch `index` of the epoch, ``int32 [T, B]`` each."""
        shape = (self.sequence_length, self.batch_size)
        inputs_TB = np.full(shape, self.first_input, np.int32)
        targets_TB = np.full(shape, IGNORED, np.int32)
        offset = index * self.sequence_length
        for column, stream in enumerate(self.stream_ids):
            start = int(self.starts_S[stream]) + offset
            count = max(0, min(self.sequence_length, int(self.lengths_S[stream]) - offset))
            targets_TB[:count, column] = self.tokens[start : start + count]
            if count and start:
                inputs_TB[:count, column] = self.tokens[start - 1 : start - 1 + count]
            elif count:
                inputs_TB[1:count, column] = self.tokens[: count - 1]
        return MicroBatch(inputs_TB, targets_TB)

    def target_count(self, start: int, stop: int) -> int:
        """Targets in the micro-batches ``start <= index < stop`` on all data ranks."""
        low, high = start * self.sequence_length, stop * self.sequence_length
        return int((np.clip(self.lengths_S, low, high) - low).sum())

    def windows(self, backward_passes_per_step: int) -> Iterator[Window]:
        """The windows of an epoch; the last one is short if the micro-batches do not divide."""
        for start in range(0, self.micro_batches, backward_passes_per_step):
            stop = min(start + backward_passes_per_step, self.micro_batches)
            yield Window(start, stop, self.target_count(start, stop))
