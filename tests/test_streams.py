"""Contiguous streams: every token is a target once per epoch, in order, however the batch is split over ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hvd_lm.data.sources import IGNORED
from hvd_lm.data.streams import Streams, continue_streams


def ranks_of(n: int, ranks: int, batch_size: int, sequence_length: int) -> list[Streams]:
    """The streams of every data rank over the tokens 0 ... n-1; n precedes the first."""
    return [
        Streams(
            np.arange(n),
            first_input=n,
            batch_size=batch_size,
            sequence_length=sequence_length,
            data_rank=rank,
            data_size=ranks,
        )
        for rank in range(ranks)
    ]


def columns(streams: Streams) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Inputs and targets of a whole epoch, ``[micro-batches * T, B]``."""
    batches = [streams.micro_batch(index) for index in range(streams.micro_batches)]
    empty = np.empty((0, streams.batch_size), np.int32)
    return np.concatenate([empty, *(b.inputs_TB for b in batches)]), np.concatenate([empty, *(b.targets_TB for b in batches)])


def each_cut(test: Callable[[int, int, int, int], None]) -> Callable[[], None]:
    """Run `test` for texts of any length, shorter than one token a stream too, cut in any way."""
    sizes = {"n": st.integers(0, 400), "ranks": st.integers(1, 5), "batch_size": st.integers(1, 6)}
    given_sizes: Callable[[], None] = given(**sizes, sequence_length=st.integers(1, 20))(test)
    return settings(max_examples=150, deadline=None)(given_sizes)


@each_cut
def test_every_token_is_a_target_exactly_once(n: int, ranks: int, batch_size: int, sequence_length: int) -> None:
    targets = [columns(streams)[1] for streams in ranks_of(n, ranks, batch_size, sequence_length)]
    counted = np.concatenate([part[part != IGNORED] for part in targets])
    np.testing.assert_array_equal(np.sort(counted), np.arange(n))


@each_cut
def test_targets_of_a_stream_are_consecutive_and_padding_comes_last(
    n: int, ranks: int, batch_size: int, sequence_length: int
) -> None:
    expected_start = 0
    for streams in ranks_of(n, ranks, batch_size, sequence_length):
        for column in columns(streams)[1].T:
            length = int((column != IGNORED).sum())
            np.testing.assert_array_equal(column[:length], np.arange(expected_start, expected_start + length))
            assert (column[length:] == IGNORED).all()
            expected_start += length
    assert expected_start == n


@each_cut
def test_input_is_the_token_before_its_target(n: int, ranks: int, batch_size: int, sequence_length: int) -> None:
    for streams in ranks_of(n, ranks, batch_size, sequence_length):
        inputs, targets = columns(streams)
        real = targets != IGNORED
        before = np.where(targets == 0, n, targets - 1)
        np.testing.assert_array_equal(inputs[real], before[real])
        # Padding must be valid embedding rows, too.
        assert ((inputs >= 0) & (inputs <= n)).all()


@each_cut
def test_streams_differ_by_one_token_at_most(n: int, ranks: int, batch_size: int, sequence_length: int) -> None:
    lengths: list[int] = []
    for streams in ranks_of(n, ranks, batch_size, sequence_length):
        lengths += [int((column != IGNORED).sum()) for column in columns(streams)[1].T]
    assert len(lengths) == ranks * batch_size
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 400),
    ranks=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    sequence_length=st.integers(1, 20),
    passes=st.integers(1, 9),
)
def test_ranks_agree_on_windows_and_their_target_counts(
    n: int, ranks: int, batch_size: int, sequence_length: int, passes: int
) -> None:
    everyone = ranks_of(n, ranks, batch_size, sequence_length)
    windows = list(everyone[0].windows(passes))
    for streams in everyone:
        assert streams.micro_batches == everyone[0].micro_batches
        assert list(streams.windows(passes)) == windows
    for window in windows:
        counted = sum(
            int((streams.micro_batch(index).targets_TB != IGNORED).sum())
            for streams in everyone
            for index in range(window.start, window.stop)
        )
        assert window.target_count == counted
        assert counted > 0, "a window without a target would divide by zero"
    assert sum(window.target_count for window in windows) == n


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 400), sequence_length=st.integers(1, 20), passes=st.integers(1, 9))
def test_windows_are_full_but_for_the_last(n: int, sequence_length: int, passes: int) -> None:
    streams = ranks_of(n, 1, 3, sequence_length)[0]
    windows = list(streams.windows(passes))
    sizes = [window.stop - window.start for window in windows]
    assert sizes[:-1] == [passes] * (len(sizes) - 1)
    assert sizes[-1] == (streams.micro_batches % passes or passes)
    assert [window.start for window in windows] == [0, *(window.stop for window in windows[:-1])]
    assert windows[-1].stop == streams.micro_batches


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 500), sequence_length=st.integers(1, 20))
def test_split_over_ranks_does_not_change_a_stream(n: int, sequence_length: int) -> None:
    alone = columns(ranks_of(n, 1, 8, sequence_length)[0])
    for ranks, batch_size in ((2, 4), (4, 2), (8, 1)):
        split = ranks_of(n, ranks, batch_size, sequence_length)
        assert [stream for streams in split for stream in streams.stream_ids] == list(range(8))
        for whole, side in zip(alone, (0, 1), strict=True):
            np.testing.assert_array_equal(np.concatenate([columns(streams)[side] for streams in split], axis=1), whole)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_micro_batches_are_int32_of_one_shape(dtype: type[np.integer]) -> None:
    streams = Streams(np.arange(101, dtype=dtype), first_input=0, batch_size=4, sequence_length=7, data_rank=1, data_size=2)
    assert streams.micro_batches == 2
    for index in range(streams.micro_batches):
        batch = streams.micro_batch(index)
        for array in (batch.inputs_TB, batch.targets_TB):
            assert array.shape == (7, 4)
            assert array.dtype == np.int32


def test_a_small_text_by_hand() -> None:
    """Seven tokens in two streams of four and three, two at a time."""
    streams = Streams(np.array([10, 11, 12, 13, 14, 15, 16]), first_input=1, batch_size=2, sequence_length=2)
    first, second = streams.micro_batch(0), streams.micro_batch(1)
    np.testing.assert_array_equal(first.inputs_TB, [[1, 13], [10, 14]])
    np.testing.assert_array_equal(first.targets_TB, [[10, 14], [11, 15]])
    np.testing.assert_array_equal(second.targets_TB, [[12, 16], [13, IGNORED]])
    np.testing.assert_array_equal(second.inputs_TB[:, 0], [11, 12])
    assert second.inputs_TB[0, 1] == 15
    assert [streams.target_count(0, 1), streams.target_count(1, 2), streams.target_count(0, 2)] == [4, 3, 7]


CUTS = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(0, 12))


@settings(max_examples=150, deadline=None)
@given(n=st.integers(0, 300), cuts=st.lists(CUTS, min_size=1, max_size=4))
def test_ranks_may_change_within_an_epoch(n: int, cuts: list[tuple[int, int, int, int]]) -> None:
    """Some micro-batches with each of `cuts` (ranks, batch, length, micro-batches), the rest with the last: nothing is lost."""
    seen: list[int] = []
    position = ranks_of(n, 1, 1, 1)[0].position(0)
    for number, (ranks, batch_size, sequence_length, micro_batches) in enumerate(cuts):
        parts = [
            continue_streams(
                position,
                np.arange(n),
                first_input=n,
                batch_size=batch_size,
                sequence_length=sequence_length,
                data_rank=rank,
                data_size=ranks,
            )
            for rank in range(ranks)
        ]
        streams, first, continued = parts[0]
        assert all((part[1], part[2]) == (first, continued) for part in parts), "ranks agree"
        stop = streams.micro_batches if number == len(cuts) - 1 else min(first + micro_batches, streams.micro_batches)
        for part, _, _ in parts:
            batches = [part.micro_batch(index) for index in range(first, stop)]
            for column in range(batch_size):
                targets = np.concatenate([np.empty(0, np.int32), *(batch.targets_TB[:, column] for batch in batches)])
                inputs = np.concatenate([np.empty(0, np.int32), *(batch.inputs_TB[:, column] for batch in batches)])
                real = targets != IGNORED
                assert (np.diff(targets[real]) > 0).all(), "a stream goes forward through the text"
                np.testing.assert_array_equal(inputs[real], np.where(targets[real] == 0, n, targets[real] - 1))
                seen += targets[real].tolist()
        position = streams.position(stop)
    assert sorted(seen) == list(range(n))


@pytest.mark.parametrize(
    ("batch_size", "continued"),
    [(1, [0]), (3, [0, None, None]), (6, [0, None, None, 1, None, None]), (7, [0, None, None, 1, None, None, None])],
)
def test_a_stream_that_begins_where_an_old_one_stopped_continues_it(batch_size: int, continued: list[int | None]) -> None:
    """Ten tokens in two streams, two read of each: [2, 5) and [7, 10) are left."""
    position = Streams(np.arange(10), first_input=99, batch_size=2, sequence_length=2).position(1)
    left = continue_streams(position, np.arange(10), first_input=99, batch_size=batch_size, sequence_length=2)
    assert left[1:] == (0, continued)
    assert left[0].target_count(0, left[0].micro_batches) == 6


def test_as_many_streams_go_on_as_they_are() -> None:
    position = Streams(np.arange(10), first_input=99, batch_size=2, sequence_length=2).position(1)
    streams, micro_batch, continued = continue_streams(position, np.arange(10), first_input=99, batch_size=2, sequence_length=2)
    assert (streams.micro_batches, micro_batch, continued) == (3, 1, [0, 1])


def test_unread_segments_by_hand() -> None:
    """Ten tokens in two streams of five; after one micro-batch of two, three streams of two share the rest."""
    first = Streams(np.arange(10), first_input=99, batch_size=2, sequence_length=2)
    assert first.unread(0) == [[(0, 5)], [(5, 10)]]
    assert first.unread(2) == [[(2, 5)], [(7, 10)]]
    assert first.unread(5) == [[], []]
    rest = Streams(np.arange(10), first_input=99, batch_size=3, sequence_length=2, segments=[(2, 5), (7, 10)])
    np.testing.assert_array_equal(rest.micro_batch(0).targets_TB.T, [[2, 3], [4, 7], [8, 9]])
    np.testing.assert_array_equal(rest.micro_batch(0).inputs_TB.T, [[1, 2], [3, 6], [7, 8]])
    assert rest.unread(0) == [[(2, 4)], [(4, 5), (7, 8)], [(8, 10)]]
