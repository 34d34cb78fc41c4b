"""Examples that stand alone, such as a sentence and what it says: micro-batches of those of about one length, in another order in
every epoch.

The order of an epoch is a function of its number and of the lengths alone: examples are drawn in pools, sorted by length within a
pool, and cut into chunks, which are shuffled. All ranks read along it, S = R * B examples a micro-batch, of which data rank r has
r*B ... r*B + B-1. So any number of ranks can go on where others were, and each example is read once in an epoch.

Shapes: N tokens of all examples, T time, B examples of this rank, S of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.data.sources import IGNORED, MicroBatch, Position, Window

_POOL, _CHUNK = 4096, 64
"""Examples that are sorted together, and that stay neighbours when their order is shuffled."""
_KEY = 0x6578616D
"""Tells the numbers drawn here from those drawn elsewhere."""


@dataclass(frozen=True)
class Examples:
    """Inputs and targets, one example after the other."""

    inputs_N: NDArray[np.int32]
    targets_N: NDArray[np.int32]
    """`sources.IGNORED` where nothing is predicted."""
    starts: NDArray[np.int64]
    """Where each example begins, and where the last one ends."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each."""
        return np.diff(self.starts)

    def inputs(self, index: int) -> NDArray[np.int32]:
        """Of one example, ``int32 [T]``."""
        return self.inputs_N[self.starts[index] : self.starts[index + 1]]

    def targets(self, index: int) -> NDArray[np.int32]:
        """Of one example, ``int32 [T]``."""
        return self.targets_N[self.starts[index] : self.starts[index + 1]]


def examples_of(inputs: Sequence[NDArray[np.int32]], targets: Sequence[NDArray[np.int32]]) -> Examples:
    """Of equally long arrays ``int32 [T]``, two of each example."""
    lengths = [len(tokens) for tokens in inputs]
    empty = np.empty(0, np.int32)
    return Examples(
        np.concatenate([empty, *inputs]),
        np.concatenate([empty, *targets]),
        np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
    )


def order_of_epoch(lengths: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
    """The numbers of all examples, in the order in which `epoch` reads them."""
    generator = np.random.Generator(np.random.Philox(key=[_KEY, epoch]))
    drawn = generator.permutation(len(lengths))
    chunks: list[NDArray[np.int64]] = []
    for start in range(0, len(drawn), _POOL):
        pool = drawn[start : start + _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        of_pool = [pool[first : first + _CHUNK] for first in range(0, len(pool), _CHUNK)]
        chunks += [of_pool[place] for place in generator.permutation(len(of_pool))]
    return np.concatenate([np.empty(0, np.int64), *chunks])


class ExampleBatches:
    """The micro-batches of one data rank in an epoch: a source (hvd_lm.data.sources)."""

    carries_state = False

    def __init__(
        self, examples: Examples, epoch: int, *, batch_size: int, data_rank: int = 0, data_size: int = 1, begin: int = 0
    ) -> None:
        """Of what comes in `epoch` after its first `begin` examples."""
        self._examples, self._epoch, self._begin = examples, epoch, begin
        self._order = order_of_epoch(examples.lengths, epoch)[begin:]
        self.stream_ids = range(data_rank * batch_size, (data_rank + 1) * batch_size)
        self._together = batch_size * data_size
        counts = np.array([int((examples.targets(index) != IGNORED).sum()) for index in self._order], np.int64)
        self._targets_before = np.concatenate(([0], np.cumsum(counts)))

    @property
    def micro_batches(self) -> int:
        """In the epoch, the same on all ranks."""
        return -(-len(self._order) // self._together)

    def micro_batch(self, index: int) -> MicroBatch:
        """``int32 [T, B]`` each."""
        together, shape = self._all(index), (self.length(index), len(self.stream_ids))
        inputs_TB, targets_TB = np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
        for column, example in enumerate(together[self.stream_ids.start : self.stream_ids.stop]):
            inputs_T = self._examples.inputs(example)
            inputs_TB[: len(inputs_T), column] = inputs_T
            targets_TB[: len(inputs_T), column] = self._examples.targets(example)
        return MicroBatch(inputs_TB, targets_TB)

    def length(self, index: int) -> int:
        """T, the length of the longest example that any rank has in micro-batch `index`."""
        return int(self._examples.lengths[self._all(index)].max())

    def _all(self, index: int) -> NDArray[np.int64]:
        """The examples that all ranks have in micro-batch `index`."""
        return self._order[index * self._together : (index + 1) * self._together]

    def windows(self, backward_passes_per_step: int, start: int = 0) -> Iterator[Window]:
        """The windows from micro-batch `start` on; the last one is short if the micro-batches do not divide."""
        for first in range(start, self.micro_batches, backward_passes_per_step):
            stop = min(first + backward_passes_per_step, self.micro_batches)
            low, high = (self._targets_before[min(end * self._together, len(self._order))] for end in (first, stop))
            yield Window(first, stop, int(high - low))

    def position(self, micro_batches: int) -> Position:
        """After `micro_batches` micro-batches; its segments count examples in the order of the epoch."""
        whole = self._begin + len(self._order)
        read = min(whole, self._begin + micro_batches * self._together)
        return Position(((read, whole),), self._together, 1, 0)
