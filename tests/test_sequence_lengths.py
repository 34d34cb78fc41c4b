"""Random lengths of sequences, by the distribution of Merity et al. 2017: functions of seed and epoch; every token is read once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_lm.config import DataConfig
from hvd_lm.data.sequence_lengths import SHORTEST, random_lengths
from hvd_lm.data.sources import IGNORED
from hvd_lm.data.streams import Streams, continue_streams
from hvd_lm.data.texts import read_texts
from hvd_lm.errors import ConfigError
from hvd_lm.job.topology import Topology
from hvd_lm.training.dataset import TextDataset


def test_their_distribution() -> None:
    lengths = np.diff(random_lengths(70, seed=1, epoch=0)(2_000_000))
    assert len(lengths) == pytest.approx(2_000_000 / (0.95 * 70 + 0.05 * 35), rel=0.01)
    assert lengths.min() >= SHORTEST
    about_half = lengths < 52
    assert about_half.mean() == pytest.approx(0.05, abs=0.005)
    # Whole numbers are cut off, not rounded.
    assert lengths[~about_half].mean() == pytest.approx(69.5, abs=0.1)
    assert lengths[about_half].mean() == pytest.approx(34.5, abs=0.5)
    assert lengths[~about_half].std() == pytest.approx(5, abs=0.1)


@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(0, 30_000), fewer=st.integers(0, 30_000), sequence_length=st.integers(10, 80), epoch=st.integers(0, 3))
def test_they_reach_the_end_and_do_not_depend_on_where_it_is(tokens: int, fewer: int, sequence_length: int, epoch: int) -> None:
    begins = random_lengths(sequence_length, seed=7, epoch=epoch)
    found, of_fewer = begins(tokens), begins(min(tokens, fewer))
    assert found[0] == 0
    assert found[-1] >= tokens
    assert all(before < tokens for before in found[:-1])
    assert of_fewer == found[: len(of_fewer)]


def test_they_are_others_in_another_epoch_and_with_another_seed() -> None:
    drawn = [random_lengths(20, seed=seed, epoch=epoch)(1000) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert all(one != other for one, other in pairwise([*drawn, drawn[0]]))


def cut(n: int, rank: int, ranks: int, batch_size: int, epoch: int = 0) -> Streams:
    begins = random_lengths(10, seed=3, epoch=epoch)
    return Streams(
        np.arange(n),
        first_input=n,
        batch_size=batch_size,
        sequence_length=10,
        data_rank=rank,
        data_size=ranks,
        begins=begins,
    )


@settings(max_examples=100, deadline=None)
@given(n=st.integers(0, 700), ranks=st.integers(1, 4), batch_size=st.integers(1, 4), passes=st.integers(1, 5))
def test_ranks_agree_and_read_each_token_once(n: int, ranks: int, batch_size: int, passes: int) -> None:
    everyone = [cut(n, rank, ranks, batch_size) for rank in range(ranks)]
    windows = list(everyone[0].windows(passes))
    assert all(list(streams.windows(passes)) == windows for streams in everyone)
    seen: list[int] = []
    for window in windows:
        batches = [[streams.micro_batch(index) for index in range(window.start, window.stop)] for streams in everyone]
        lengths = [len(batch.targets_TB) for batch in batches[0]]
        assert all([len(batch.targets_TB) for batch in of_rank] == lengths for of_rank in batches)
        assert lengths == [everyone[0].length(index) for index in range(window.start, window.stop)]
        assert window.relative_length == pytest.approx(np.mean(lengths) / 10)
        targets = np.concatenate([batch.targets_TB.ravel() for of_rank in batches for batch in of_rank])
        assert window.target_count == (targets != IGNORED).sum()
        seen += targets[targets != IGNORED].tolist()
    assert sorted(seen) == list(range(n))


@settings(max_examples=100, deadline=None)
@given(n=st.integers(0, 700), first=st.integers(1, 5), then=st.integers(1, 5), read=st.integers(0, 12), is_random=st.booleans())
def test_others_go_on_within_an_epoch(n: int, first: int, then: int, read: int, is_random: bool) -> None:
    """On as many streams the same micro-batches come; on others, or with lengths of another kind, all that is left."""
    begun = cut(n, 0, 1, first)
    read = min(read, begun.micro_batches)
    begins = random_lengths(10, seed=3, epoch=0) if is_random else None
    streams, index, _ = continue_streams(
        begun.position(read), np.arange(n), first_input=n, batch_size=then, sequence_length=10, begins=begins
    )
    if then == first and is_random:
        assert (streams.micro_batches, index) == (begun.micro_batches, read)
    targets = [begun.micro_batch(at).targets_TB.ravel() for at in range(read)]
    targets += [streams.micro_batch(at).targets_TB.ravel() for at in range(index, streams.micro_batches)]
    seen = np.concatenate([np.empty(0, np.int32), *targets])
    assert sorted(seen[seen != IGNORED]) == list(range(n))


def test_steps_of_epochs_are_counted_ahead(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three four five\n" * 200)
    data = DataConfig((tmp_path / "text.txt",), batch_size=2, sequence_length=12, random_lengths=True)
    dataset, topology = TextDataset(read_texts(data, None), seed=5), Topology(0, 1, 1)
    each = [len(list(dataset.source(epoch, data, topology).windows(3))) for epoch in range(6)]
    assert len(set(each)) > 1
    assert dataset.windows(range(1, 6), 3, data, topology) == sum(each[1:])
    constant = replace(data, random_lengths=False)
    assert dataset.windows(range(1, 6), 3, constant, topology) == 5 * len(list(dataset.source(0, constant, topology).windows(3)))


def test_short_sequences_are_refused() -> None:
    with pytest.raises(ConfigError, match="--random-lengths needs a --sequence-length of at least 10, not 9"):
        DataConfig(sequence_length=9, random_lengths=True)
