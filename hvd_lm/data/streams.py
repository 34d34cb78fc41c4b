"""Contiguous streams: how a text is cut into micro-batches, the same for any split of the batch over ranks.

A text of n tokens gives n targets; the input of each is the token before it (<eos> before the first). The targets are
cut into S = R * B contiguous streams (R data ranks, B sequences a rank), the first n mod S of them one token longer.
Data rank r reads the streams r*B ... r*B + B-1, T tokens at a time, or so (hvd_lm.data.sequence_lengths). The last micro-batch of
an epoch is padded with `IGNORED` targets, so that every token is a target exactly once, shapes do not depend on ranks, and all
ranks agree on the number of micro-batches. (R=1, B=8) and (R=2, B=4) see the same tokens.

A run that goes on with another number of streams cuts what the old ones had not read yet (`unread`) into new ones: every
token is still a target exactly once in the epoch.

Shapes: T time, B streams of this rank, S all streams.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_lm.data.sequence_lengths import Begins, constant_length
from hvd_lm.data.sources import IGNORED, MicroBatch, Position, Segment, Window


class Tokens(Protocol):
    """Token ids of a text, ``[n]``: a NumPy array, or shards on the disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> NDArray[np.integer]: ...


class Streams:
    """The streams that one data rank reads from `tokens`: a source (hvd_lm.data.sources)."""

    carries_state = True

    def __init__(
        self,
        tokens: Tokens,
        *,
        first_input: int,
        batch_size: int,
        sequence_length: int,
        data_rank: int = 0,
        data_size: int = 1,
        segments: Sequence[Segment] | None = None,
        whole_micro_batches: bool = False,
        begins: Begins | None = None,
    ) -> None:
        """`tokens` are the n targets, ``[n]``; `first_input` precedes the first of them. Only `segments` are read, unless None.
        Micro-batches are those of `begins`; None: of T tokens each.

        With `whole_micro_batches` all streams are of one length, a multiple of T, but for the last ones, which may be shorter or
        empty: nothing is padded before the end of the text, so the state after a stream is the one before the next.
        """
        self.tokens = tokens
        self.first_input = first_input
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        whole = [(0, len(tokens))] if segments is None else segments
        self.segments = [(start, stop) for start, stop in whole if start < stop]
        lengths = [stop - start for start, stop in self.segments]
        # Streams are cut from the segments joined; a segment begins at its offset there.
        self._offsets = list(accumulate(lengths, initial=0))[:-1]
        count, total = batch_size * data_size, sum(lengths)
        if whole_micro_batches:
            length = -(-total // (count * sequence_length)) * sequence_length
            stops_S = np.minimum(np.arange(1, count + 1) * length, total)
        else:
            share, longer = divmod(total, count)
            stops_S = np.arange(1, count + 1) * share + np.minimum(np.arange(1, count + 1), longer)
        self.starts_S: NDArray[np.int64] = np.concatenate(([0], stops_S[:-1]))
        self.lengths_S: NDArray[np.int64] = stops_S - self.starts_S
        self.first_stream = data_rank * batch_size
        self._begins = (begins or constant_length(sequence_length))(int(self.lengths_S[0]))

    @property
    def stream_ids(self) -> range:
        """Which of the S streams this rank reads."""
        return range(self.first_stream, self.first_stream + self.batch_size)

    @property
    def micro_batches(self) -> int:
        """Micro-batches in an epoch, the same on all ranks."""
        return len(self._begins) - 1

    def length(self, index: int) -> int:
        """T of micro-batch `index`."""
        return self._begins[index + 1] - self._begins[index]

    def micro_batch(self, index: int) -> MicroBatch:
        """Micro-batch `index` of the epoch, ``int32 [T, B]`` each."""
        shape = (self.length(index), self.batch_size)
        inputs_TB = np.full(shape, self.first_input, np.int32)
        targets_TB = np.full(shape, IGNORED, np.int32)
        for column, stream in enumerate(self.stream_ids):
            row = 0
            for start, stop in self._read(stream, self._begins[index], shape[0]):
                after = row + stop - start
                targets_TB[row:after, column] = self.tokens[start:stop]
                before = self.tokens[max(start - 1, 0) : stop - 1]
                inputs_TB[after - len(before) : after, column] = before
                row = after
        return MicroBatch(inputs_TB, targets_TB)

    def _read(self, stream: int, position: int, count: int | None = None) -> Iterator[Segment]:
        """Where in the text the next `count` targets (None: all that follow) of a stream at `position` are."""
        end = int(self.lengths_S[stream])
        low = int(self.starts_S[stream]) + min(position, end)
        high = int(self.starts_S[stream]) + (end if count is None else min(position + count, end))
        index = bisect_right(self._offsets, low) - 1
        while low < high:
            start, stop = self.segments[index]
            first = start + low - self._offsets[index]
            after = min(stop, first + high - low)
            yield first, after
            low += after - first
            index += 1

    def unread(self, tokens: int) -> list[list[Segment]]:
        """What each of the S streams has not read after so many of its tokens."""
        return [list(self._read(stream, tokens)) for stream in range(len(self.lengths_S))]

    def target_count(self, start: int, stop: int) -> int:
        """Targets in the micro-batches ``start <= index < stop`` on all data ranks."""
        low, high = self._begins[start], self._begins[stop]
        return int((np.clip(self.lengths_S, low, high) - low).sum())

    def windows(self, backward_passes_per_step: int, start: int = 0) -> Iterator[Window]:
        """The windows from micro-batch `start` on; the last one is short if the micro-batches do not divide."""
        for first in range(start, self.micro_batches, backward_passes_per_step):
            stop = min(first + backward_passes_per_step, self.micro_batches)
            mean_length = (self._begins[stop] - self._begins[first]) / (stop - first)
            yield Window(first, stop, self.target_count(first, stop), mean_length / self.sequence_length)

    def position(self, micro_batches: int) -> Position:
        """After `micro_batches` micro-batches."""
        read = min(self._begins[micro_batches], int(self.lengths_S[0]))
        return Position(tuple(self.segments), len(self.lengths_S), self.sequence_length, micro_batches, read)

    def micro_batch_at(self, tokens: int) -> int | None:
        """The one that begins after `tokens` tokens of the longest stream, which has as many; None if they end within one."""
        index = bisect_left(self._begins, tokens)
        return index if tokens in (self._begins[index], int(self.lengths_S[0])) else None


def continue_streams(
    position: Position,
    tokens: Tokens,
    *,
    first_input: int,
    batch_size: int,
    sequence_length: int,
    data_rank: int = 0,
    data_size: int = 1,
    begins: Begins | None = None,
) -> tuple[Streams, int, list[int | None]]:
    """The streams for the rest of an epoch that was read up to `position`, which is one in it, by whatever ranks.

    Returns them, the micro-batch to go on with, and for each of the S streams which old stream it continues, whose LSTM
    state it therefore takes (None: it begins within an old stream, or there is nothing left to read).
    """
    read = position.tokens_read
    assert read is not None
    cut = partial(Streams, tokens, first_input=first_input, sequence_length=sequence_length)
    mine = partial(cut, batch_size=batch_size, data_rank=data_rank, data_size=data_size, begins=begins)
    if position.streams == batch_size * data_size:
        streams = mine(segments=position.segments)
        if (index := streams.micro_batch_at(read)) is not None:
            return streams, index, list(range(position.streams))
    unread = cut(segments=position.segments, batch_size=position.streams).unread(read)
    next_target = {segments[0][0]: stream for stream, segments in enumerate(unread) if segments}
    streams = mine(segments=[segment for segments in unread for segment in segments])
    return streams, 0, [next_target.get(segments[0][0]) if segments else None for segments in streams.unread(0)]
