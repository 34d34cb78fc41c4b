"""What a run reads in an epoch, as the training loop sees it: numbered micro-batches, the same number on all ranks.

`streams.Streams` is one, for language models: its sequences go on from micro-batch to micro-batch.

Shapes: T time, B sequences of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Segment = tuple[int, int]
"""Targets ``start <= index < stop`` of a text."""

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
    relative_length: float = 1.0
    """Mean length of its sequences over that which the learning rate is for: the rate is multiplied by it."""


@dataclass(frozen=True)
class Position:
    """How far the streams of an epoch were read: enough to go on with any number of them."""

    segments: tuple[Segment, ...]
    """The parts of the text that the streams were cut from."""
    streams: int
    """How many streams, on all data ranks (S)."""
    sequence_length: int
    micro_batches: int
    """How many micro-batches were read of each stream."""
    tokens: int | None = None
    """How many tokens were read of each stream that has as many; None in older checkpoints, whose sequences are of one length."""

    @property
    def longest(self) -> int:
        """Tokens of the longest stream."""
        return -(-sum(stop - start for start, stop in self.segments) // self.streams)

    @property
    def tokens_read(self) -> int | None:
        """Of the longest stream; None if it does not have as many."""
        if self.tokens is not None:
            return self.tokens if self.tokens <= self.longest else None
        is_within = self.micro_batches <= -(-self.longest // self.sequence_length)
        return min(self.micro_batches * self.sequence_length, self.longest) if is_within else None


class Source(Protocol):
    """The part of one data rank."""

    @property
    def carries_state(self) -> bool:
        """Whether sequence b of a micro-batch goes on where that of the one before ended; else each begins with a zero state."""
        ...

    @property
    def stream_ids(self) -> range:
        """Numbers of this rank's B sequences among those of all ranks: what noise and states are counted by."""
        ...

    @property
    def micro_batches(self) -> int:
        """In the epoch."""
        ...

    def micro_batch(self, index: int) -> MicroBatch:
        """Micro-batch `index` of the epoch."""
        ...

    def length(self, index: int) -> int:
        """T of micro-batch `index`, the same on all ranks."""
        ...

    def windows(self, backward_passes_per_step: int, start: int = 0) -> Iterator[Window]:
        """The windows from micro-batch `start` on; the last one is short if the micro-batches do not divide."""
        ...

    def position(self, micro_batches: int) -> Position:
        """After `micro_batches` micro-batches: enough to go on, on any number of ranks."""
        ...
