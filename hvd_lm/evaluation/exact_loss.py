"""The loss of a model on a whole text, the same for any number of ranks and streams.

The text is cut into streams that are read side by side, but an LSTM reads a text from its beginning to its end. So every stream
but the first begins with a state that is wrong, and is read again from the state in which the stream before it ended, up to
where its states are those of the reading before: an LSTM forgets, so that is mostly soon. Where a stream did not settle before
its end, the next one is read once more, and so on; at worst there are as many readings as streams, one after the other. (A
fixed-point iteration over time, as parallel evaluations of recurrent models use: Lim et al. 2024, arXiv:2309.12252.)

Shapes: T time, B streams of this rank, S all streams, N tokens of a stream, C micro-batches of it, U units of all layers;
2: h and c.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter
from hvd_lm.data.sources import IGNORED
from hvd_lm.data.streams import Streams, Tokens
from hvd_lm.model.stages import state_size
from hvd_lm.model.weights import Array

TOLERANCE = 1e-5
"""Largest difference between two states (relative where they exceed 1) that counts as none: what rounding makes of one."""
_SATURATED = 20.0
"""tanh of this, or of anything beyond, is 1 in float32."""
_REMEMBERED = 64
"""Micro-batches, from the beginning of a stream, after which states are kept for comparison."""


def evaluation_streams(adapter: Adapter, tokens: Tokens, first_input: int, batch_size: int, sequence_length: int) -> Streams:
    """The streams that this rank reads."""
    return Streams(
        tokens,
        first_input=first_input,
        batch_size=batch_size,
        sequence_length=sequence_length,
        data_rank=adapter.job.topology.reader,
        data_size=adapter.job.topology.readers,
        whole_micro_batches=True,
    )


def exact_loss(adapter: Adapter, streams: Streams) -> float:
    """Sum of the cross-entropy (nats) over `evaluation_streams`, as if one stream had been read from end to end. Collective.

    A rank that cannot read its streams notes it (`job.trouble`) and makes the sum NaN: the caller lets the ranks agree.
    """
    reading = _Reading(adapter, streams)
    _read_exactly(reading, adapter, streams)
    return float(adapter.job.sum(np.array([np.nan if reading.failed else reading.losses_CB.sum()]))[0])


def exact_losses(adapter: Adapter, streams: Streams) -> Array:
    """Cross-entropy (nats) of every token of `evaluation_streams`, ``float32 [n]`` on every rank, as `exact_loss`. Collective.

    A rank that cannot read its streams notes it (`job.trouble`): the caller lets the ranks agree.
    """
    reading = _TokenReading(adapter, streams)
    _read_exactly(reading, adapter, streams)
    losses_BN = reading.losses_CTB.reshape(-1, streams.batch_size).T
    losses_SN = np.concatenate(adapter.job.gather(np.ascontiguousarray(losses_BN)))
    return np.concatenate([losses_N[:length] for losses_N, length in zip(losses_SN, streams.lengths_S, strict=True)])


def _read_exactly(reading: _Reading, adapter: Adapter, streams: Streams) -> None:
    stream_count, mine = len(streams.lengths_S), slice(streams.stream_ids.start, streams.stream_ids.stop)
    starts_2BU = np.zeros_like(reading.ends_2BU)
    reading.read(starts_2BU, range(streams.batch_size))
    for _ in range(stream_count - 1):
        ends_2SU = np.concatenate(adapter.job.gather(reading.ends_2BU), axis=1)
        # Stream 0 begins the text; the others begin where the one before ended.
        ends_2SU[:, -1] = 0
        before_2BU, starts_2BU = starts_2BU, np.roll(ends_2SU, 1, axis=1)[:, mine]
        wrong_B = ~reading.settled(before_2BU, starts_2BU, 0) & (streams.lengths_S[mine] > 0) & (not reading.failed)
        # All ranks must go on as long as one has something to read: it may change what the others begin with.
        if not adapter.job.sum(np.array([float(wrong_B.any())]))[0]:
            break
        # Where the difference means nothing, what was read stays what it was read from.
        starts_2BU = np.where(wrong_B[:, None], starts_2BU, before_2BU)
        reading.read(starts_2BU, np.flatnonzero(wrong_B))


class _Reading:
    """What is known of the streams of this rank."""

    def __init__(self, adapter: Adapter, streams: Streams) -> None:
        self._adapter, self._streams = adapter, streams
        remembered = min(streams.micro_batches, _REMEMBERED)
        state_shape = (2, streams.batch_size, state_size(adapter.model))
        self.losses_CB = np.zeros((streams.micro_batches, streams.batch_size))
        """Sum of the cross-entropy (nats) in each micro-batch."""
        self.ends_2BU: Array = np.zeros(state_shape, np.float32)
        """States after the streams."""
        # Of the reading before: states after the first micro-batches, and how small each |c| was after any of the later ones.
        self._states_C2BU: Array = np.zeros((remembered, *state_shape), np.float32)
        self._lowest_BU: Array = np.full(state_shape[1:], np.inf, np.float32)
        self._was_read = False

    @property
    def failed(self) -> bool:
        """Then the others go on alone, and every call of this rank only keeps step with them."""
        return self._adapter.job.trouble.error is not None

    def read(self, starts_2BU: Array, columns: Sequence[int] | NDArray[np.intp]) -> None:
        """Read the streams in `columns` from `starts_2BU`, each until its states are those of the reading before.

        Collective over a model group: its ranks read on until all have done.
        """
        columns = np.asarray(columns if not self.failed else (), np.intp)
        state_2BU = starts_2BU[:, columns]
        for index in range(self._streams.micro_batches):
            width = self._widest(len(columns))
            if not width:
                return
            with self._adapter.job.trouble.noted():
                columns, state_2BU = self._read(index, columns, state_2BU, width)
            if self.failed:
                columns, state_2BU = columns[:0], state_2BU[:, :0]
        self.ends_2BU[:, columns] = state_2BU
        self._was_read = True

    def _read(self, index: int, columns: NDArray[np.intp], state_2BU: Array, width: int) -> tuple[NDArray[np.intp], Array]:
        """Micro-batch `index`, among `width` columns; which streams are still to be read, and their states."""
        self._adapter.job.watch.sign()
        shape = (self._streams.sequence_length, width)
        inputs_TB, targets_TB = np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
        with self._adapter.job.trouble.noted():
            batch = self._streams.micro_batch(index)
            inputs_TB[:, : len(columns)] = batch.inputs_TB[:, columns]
            targets_TB[:, : len(columns)] = batch.targets_TB[:, columns]
        # A rank that cannot read keeps step with its model group.
        before_2BU = np.zeros((2, width, state_2BU.shape[2]), np.float32)
        before_2BU[:, : len(columns)] = state_2BU
        outcome = self._adapter.evaluate(inputs_TB, targets_TB, self._adapter.state_from_numpy(before_2BU))
        state_2BU = self._adapter.state_to_numpy(outcome.state)[:, : len(columns)]
        self._keep(index, columns, outcome.losses_TB[:, : len(columns)])
        return self._note(index, columns, state_2BU)

    def _keep(self, index: int, columns: NDArray[np.intp], losses_TB: Array) -> None:
        """The losses of micro-batch `index`, in place of those of the reading before."""
        self.losses_CB[index, columns] = losses_TB.sum(axis=0, dtype=np.float64)

    def _widest(self, columns: int) -> int:
        """The most that a rank of the model group, which makes every call alike, has left to read."""
        return int(self._adapter.job.gather(np.array([columns]), "model").max())

    def _note(self, index: int, columns: NDArray[np.intp], state_2BU: Array) -> tuple[NDArray[np.intp], Array]:
        """States after micro-batch `index`; which streams are still to be read, and their states."""
        if index >= len(self._states_C2BU):
            self._note_lowest(index, columns, state_2BU)
            return columns, state_2BU
        before_2BU = self._states_C2BU[index]
        everywhere_2BU = before_2BU.copy()
        everywhere_2BU[:, columns] = state_2BU
        unsettled = ~self.settled(before_2BU, everywhere_2BU, index)[columns] | (not self._was_read)
        self._states_C2BU[index] = everywhere_2BU
        return columns[unsettled], state_2BU[:, unsettled]

    def _note_lowest(self, index: int, columns: NDArray[np.intp], state_2BU: Array) -> None:
        size_BU = np.abs(state_2BU[1])
        if index > len(self._states_C2BU):
            size_BU = np.minimum(size_BU, self._lowest_BU[columns])
        self._lowest_BU[columns] = size_BU

    def settled(self, before_2BU: Array, after_2BU: Array, index: int) -> NDArray[np.bool_]:
        """For which streams ``[B]`` it makes no difference to go on from `after` instead of `before`, from micro-batch `index` on.

        A cell that counts up, or down, without end differs by far and for ever, but tanh hides it. |c| grows by less than 1 a
        token, so one that is large after each micro-batch was never small within; and a difference of c only shrinks.
        """
        with np.errstate(invalid="ignore"):
            difference_2BU = np.abs(after_2BU - before_2BU)
            # Written so that NaN, of a model that has diverged, is no difference.
            same_2BU = ~(difference_2BU > TOLERANCE * np.maximum(1.0, np.abs(before_2BU)))
        before_BU, after_BU = before_2BU[1], after_2BU[1]
        lowest_BU = np.abs(self._states_C2BU[index:, 1]).min(axis=0, initial=np.inf)
        lowest_BU = np.minimum(np.minimum(lowest_BU, self._lowest_BU), np.abs(before_BU))
        lowest_BU -= np.maximum(np.abs(before_BU) - np.abs(after_BU), 0)
        hidden_BU = (lowest_BU > _SATURATED + self._streams.sequence_length) & (np.sign(before_BU) == np.sign(after_BU))
        settled_B: NDArray[np.bool_] = (same_2BU[0] & (same_2BU[1] | hidden_BU)).all(axis=1)
        return settled_B


class _TokenReading(_Reading):
    """Keeps the loss of every token too."""

    def __init__(self, adapter: Adapter, streams: Streams) -> None:
        super().__init__(adapter, streams)
        self.losses_CTB: Array = np.zeros((streams.micro_batches, streams.sequence_length, streams.batch_size), np.float32)

    def _keep(self, index: int, columns: NDArray[np.intp], losses_TB: Array) -> None:
        super()._keep(index, columns, losses_TB)
        self.losses_CTB[index][:, columns] = losses_TB
