"""Where a run is in what it reads: epoch, source, position; micro-batches are read ahead, with the noise that goes with each.

Shapes: B sequences of this rank, S sequences of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_lm.checkpoint.format import Progress
from hvd_lm.config import DataConfig, ModelConfig
from hvd_lm.data.read_ahead import read_ahead
from hvd_lm.data.sources import IGNORED, MicroBatch, Position, Source, Window
from hvd_lm.job.topology import Topology
from hvd_lm.model.noise import dropout_masks, dropout_widths
from hvd_lm.training.dataset import Dataset

Masks = list[NDArray[np.bool_]]


class Noise(Protocol):
    """The dropout masks of a micro-batch, a pure function of what it is told."""

    def __call__(self, *, stream_ids: range, micro_batch: int, sequence_length: int) -> Masks: ...


class Cursor:
    """Walks through epochs, window by window."""

    def __init__(self, open_epoch: Callable[[int], Source], noise: Noise) -> None:
        """At the beginning of the first epoch, 0; `open_epoch` is given the number of one."""
        self._open_epoch, self._noise = open_epoch, noise
        self._batches: Generator[tuple[MicroBatch, Masks]] | None = None
        self.epoch = 0
        """Passes over the text that are complete."""
        self.micro_batches_read = 0
        """Of each sequence since the run began; what noise is counted by."""
        self._enter(open_epoch(0), 0)

    def go_on(self, source: Source, micro_batch: int, *, epoch: int, micro_batches_read: int) -> None:
        """Stand before `micro_batch` of `source`, which is what is left of epoch `epoch`."""
        self.epoch, self.micro_batches_read = epoch, micro_batches_read
        self._enter(source, micro_batch)

    def _enter(self, source: Source, micro_batch: int) -> None:
        self.source = source
        self.micro_batch = micro_batch
        """The next one of the epoch."""
        self.rest()

    def rest(self) -> None:
        """Stop reading ahead, until more is read."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    @property
    def at_end(self) -> bool:
        """Of the epoch."""
        return self.micro_batch == self.source.micro_batches

    def begin_epoch(self) -> None:
        self.epoch += 1
        self._enter(self._open_epoch(self.epoch), 0)

    def windows_left(self, backward_passes_per_step: int) -> int:
        """Until the end of the epoch."""
        return -(-(self.source.micro_batches - self.micro_batch) // backward_passes_per_step)

    def next_window(self, backward_passes_per_step: int) -> Window:
        """Of this epoch, which is not at its end."""
        return next(self.source.windows(backward_passes_per_step, self.micro_batch))

    def read(self) -> tuple[MicroBatch, Masks]:
        """The next micro-batch of the epoch, and its dropout masks. The cursor stays until it passes the window."""
        if self._batches is None:
            self._batches = self._read_ahead()
        return next(self._batches)

    def nothing(self, index: int) -> tuple[MicroBatch, Masks]:
        """A micro-batch of the shape of number `index` of the epoch, without targets, and masks."""
        shape = (self.source.length(index), len(self.source.stream_ids))
        empty = MicroBatch(np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32))
        return empty, self._noise(stream_ids=self.source.stream_ids, micro_batch=0, sequence_length=shape[0])

    def _read_ahead(self) -> Generator[tuple[MicroBatch, Masks]]:
        source, earlier = self.source, self.micro_batches_read - self.micro_batch

        def make(index: int) -> tuple[MicroBatch, Masks]:
            batch = source.micro_batch(index)
            steps = len(batch.inputs_TB)
            return batch, self._noise(stream_ids=source.stream_ids, micro_batch=earlier + index, sequence_length=steps)

        return read_ahead(make, range(self.micro_batch, source.micro_batches))

    def pass_window(self, window: Window) -> None:
        """All of its micro-batches were read, and its step was made."""
        self.micro_batch = window.stop
        self.micro_batches_read += window.stop - window.start

    def position(self) -> Position:
        """Within the epoch."""
        return self.source.position(self.micro_batch)


def dropout_noise(model: ModelConfig, seed: int) -> Noise:
    """That of the activations of `model`."""
    return partial(dropout_masks, model.dropout_rates, widths=dropout_widths(model), seed=seed, locked=model.locked_dropout)


def dataset_cursor(dataset: Dataset, data: DataConfig, topology: Topology, noise: Noise) -> Cursor:
    """At the beginning of the first epoch of `dataset`, of which this rank reads its part."""
    return Cursor(lambda epoch: dataset.source(epoch, data, topology), noise)


def go_on(cursor: Cursor, progress: Progress, dataset: Dataset, data: DataConfig, topology: Topology) -> NDArray[np.float32]:
    """Bring the `cursor` of a dataset to where `progress` was, on whatever ranks; the states that its B sequences go on with,
    [2, B, U].

    Raises CheckpointError, on all ranks alike, if it was nowhere in this dataset.
    """
    rest = dataset.rest(progress, data, topology)
    cursor.go_on(rest.source, rest.micro_batch, epoch=progress.epoch, micro_batches_read=progress.micro_batches)
    before_2SU = progress.lstm_state_2SU
    state_2BU = np.zeros((2, data.batch_size, before_2SU.shape[2]), np.float32)
    for column, sequence in enumerate(rest.source.stream_ids):
        if (old := rest.continued[sequence]) is not None:
            state_2BU[:, column] = before_2SU[:, old]
    return state_2BU
