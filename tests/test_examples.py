"""Examples that stand alone: the order of an epoch, its micro-batches on any ranks, and going on with others."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hvd_lm.data.examples import ExampleBatches, Examples, examples_of, order_of_epoch
from hvd_lm.data.sources import IGNORED


def drawn(count: int, seed: int = 1) -> Examples:
    """Of 1 to 30 tokens, each of which names its example; a target at each last token, and at some before."""
    generator = np.random.default_rng(seed)
    inputs, targets = [], []
    for number in range(count):
        length = int(generator.integers(1, 31))
        inputs.append(np.full(length, number, np.int32))
        target = np.where(generator.random(length) < 0.3, number, IGNORED).astype(np.int32)
        target[-1] = number
        targets.append(target)
    return examples_of(inputs, targets)


def columns(source: ExampleBatches, begin: int = 0) -> list[NDArray[np.int32]]:
    """The targets of every sequence that is not empty, in order; inputs are checked on the way."""
    found = []
    for index in range(begin, source.micro_batches):
        batch = source.micro_batch(index)
        assert batch.inputs_TB.shape == batch.targets_TB.shape
        for column in range(batch.targets_TB.shape[1]):
            targets = batch.targets_TB[:, column]
            if (targets != IGNORED).any():
                length = np.flatnonzero(targets != IGNORED)[-1] + 1
                assert (batch.inputs_TB[:length, column] == targets[length - 1]).all()
                found.append(targets[:length])
    return found


def names(found: list[NDArray[np.int32]]) -> list[int]:
    return [int(targets[-1]) for targets in found]


@given(count=st.integers(0, 9000), epoch=st.integers(0, 5))
def test_an_epoch_has_every_example_once(count: int, epoch: int) -> None:
    lengths = np.random.default_rng(2).integers(1, 50, count)
    order = order_of_epoch(lengths, epoch)
    assert sorted(order.tolist()) == list(range(count))
    np.testing.assert_array_equal(order, order_of_epoch(lengths, epoch))
    if count > 100:
        assert (order != order_of_epoch(lengths, epoch + 1)).mean() > 0.5


def test_neighbours_are_of_about_one_length() -> None:
    """So little of a micro-batch is padding."""
    lengths = np.random.default_rng(2).integers(1, 50, 8000)
    ordered = lengths[order_of_epoch(lengths, 0)]
    padded = sum(64 * int(ordered[start : start + 64].max()) for start in range(0, 8000, 64))
    assert padded < 1.05 * lengths.sum()
    assert np.abs(np.diff(ordered[::64])).mean() > 5, "chunks are shuffled"


@given(count=st.integers(1, 80), batch=st.integers(1, 5), ranks=st.integers(1, 4), passes=st.integers(1, 4))
def test_ranks_divide_an_epoch(count: int, batch: int, ranks: int, passes: int) -> None:
    """Each example is read once; windows count the targets of all ranks."""
    examples = drawn(count)
    sources = [ExampleBatches(examples, 3, batch_size=batch, data_rank=rank, data_size=ranks) for rank in range(ranks)]
    assert len({source.micro_batches for source in sources}) == 1
    assert sorted(name for source in sources for name in names(columns(source))) == list(range(count))
    windows = [list(source.windows(passes)) for source in sources]
    assert all(its == windows[0] for its in windows)
    for window in windows[0]:
        targets = [source.micro_batch(index).targets_TB for source in sources for index in range(window.start, window.stop)]
        assert window.target_count == sum(int((target != IGNORED).sum()) for target in targets)
    assert [window.start for window in windows[0]] == list(range(0, sources[0].micro_batches, passes))
    shapes = [[source.micro_batch(index).inputs_TB.shape for index in range(source.micro_batches)] for source in sources]
    assert all(its == shapes[0] for its in shapes)


@given(count=st.integers(1, 80), read=st.integers(0, 100), before=st.integers(1, 9), after=st.integers(1, 9))
def test_others_go_on_where_some_were(count: int, read: int, before: int, after: int) -> None:
    examples = drawn(count)
    first = ExampleBatches(examples, 1, batch_size=before)
    read = min(read, first.micro_batches)
    (begin, end), *others = first.position(read).segments
    assert (end, others) == (count, [])
    second = ExampleBatches(examples, 1, batch_size=after, begin=begin)
    seen = names(columns(first)[: read * before]) + names(columns(second))
    assert seen == names(columns(first))


def test_the_same_ranks_read_the_same_micro_batches() -> None:
    examples = drawn(50)
    whole = ExampleBatches(examples, 0, batch_size=4)
    rest = ExampleBatches(examples, 0, batch_size=4, begin=whole.position(5).segments[0][0])
    assert rest.micro_batches == whole.micro_batches - 5
    for index in range(rest.micro_batches):
        np.testing.assert_array_equal(rest.micro_batch(index).inputs_TB, whole.micro_batch(index + 5).inputs_TB)
