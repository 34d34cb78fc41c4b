"""The grid of ranks: groups that partition the job, and topologies that do not fit it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.config import TopologyConfig
from hvd_lm.errors import ConfigError
from hvd_lm.job.topology import Topology, arrange

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(grid=GRIDS)
def test_groups_partition_the_ranks(grid: tuple[int, int]) -> None:
    data, model = grid
    topology = Topology(0, data, model)
    everyone = list(range(data * model))
    assert topology.size == len(everyone)
    for groups, count, length in ((topology.data_groups(), model, data), (topology.model_groups(), data, model)):
        assert sorted(rank for group in groups for rank in group) == everyone
        assert [len(group) for group in groups] == [length] * count


@given(grid=GRIDS)
def test_a_data_group_and_a_model_group_share_one_rank(grid: tuple[int, int]) -> None:
    topology = Topology(0, *grid)
    for data_group in topology.data_groups():
        for model_group in topology.model_groups():
            assert len(set(data_group) & set(model_group)) == 1


@given(grid=GRIDS)
def test_ranks_of_a_model_group_are_consecutive(grid: tuple[int, int]) -> None:
    """They talk most, and share a host under placement by slots."""
    for group in Topology(0, *grid).model_groups():
        assert group == list(range(group[0], group[0] + len(group)))


@given(grid=GRIDS)
def test_every_rank_finds_itself_in_its_groups(grid: tuple[int, int]) -> None:
    data, model = grid
    places = set()
    for rank in range(data * model):
        topology = Topology(rank, data, model)
        assert topology.data_groups()[topology.model_rank][topology.data_rank] == rank
        assert topology.model_groups()[topology.data_rank][topology.model_rank] == rank
        places.add((topology.data_rank, topology.model_rank))
    assert places == {(d, m) for d in range(data) for m in range(model)}


@given(grid=GRIDS)
def test_rank_0_alone_writes(grid: tuple[int, int]) -> None:
    data, model = grid
    assert [rank for rank in range(data * model) if Topology(rank, data, model).is_writer] == [0]


@pytest.mark.parametrize(
    ("config", "size", "expected"),
    [
        (TopologyConfig(), 1, (1, 1)),
        (TopologyConfig(), 4, (4, 1)),
        (TopologyConfig(data_parallel=4), 4, (4, 1)),
        (TopologyConfig(model_parallel=2), 4, (2, 2)),
        (TopologyConfig(model_parallel=4), 4, (1, 4)),
        (TopologyConfig(data_parallel=3, model_parallel=2), 6, (3, 2)),
    ],
)
def test_topology_that_fits(config: TopologyConfig, size: int, expected: tuple[int, int]) -> None:
    for rank in range(size):
        assert arrange(config, rank, size) == Topology(rank, *expected, config.split)


def test_who_reads() -> None:
    """Every rank, but where the ranks of a model group pass one text on to each other."""
    everywhere = [Topology(rank, 2, 2, "vocabulary") for rank in range(4)]
    assert [(topology.reader, topology.readers) for topology in everywhere] == [(rank, 4) for rank in range(4)]
    assert [topology.groups()["readers"] for topology in everywhere] == [[0, 1, 2, 3]] * 4
    in_turn = [Topology(rank, 2, 2, "layers") for rank in range(4)]
    assert [(topology.reader, topology.readers) for topology in in_turn] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [topology.groups()["readers"] for topology in in_turn] == [[0, 2], [1, 3], [0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("settings", "split"),
    [({}, None), ({"model_parallel": 2}, "vocabulary"), ({"model_parallel": 2, "split": "layers"}, "layers")],
)
def test_what_is_split_unless_said(settings: dict[str, Any], split: str | None) -> None:
    assert TopologyConfig(**settings).split == split


@pytest.mark.parametrize(
    "settings",
    [{"split": "vocabulary"}, {"split": "layers"}, {"split": "optimizer", "model_parallel": 2}],
)
def test_a_split_that_divides_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not go with"):
        TopologyConfig(**settings)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (TopologyConfig(data_parallel=2), 1),
        (TopologyConfig(data_parallel=2), 4),
        (TopologyConfig(data_parallel=8), 4),
        (TopologyConfig(model_parallel=3), 4),
        (TopologyConfig(model_parallel=2), 1),
        (TopologyConfig(model_parallel=8), 4),
        (TopologyConfig(data_parallel=2, model_parallel=3), 4),
    ],
)
def test_topology_that_does_not_fit_is_refused(config: TopologyConfig, size: int) -> None:
    with pytest.raises(ConfigError) as caught:
        arrange(config, 0, size)
    message = str(caught.value)
    assert f"{size} rank(s)" in message
    assert "--data-parallel" in message
    assert f"--model-parallel {config.model_parallel}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("hosts", "scattered"),
    [("aabb", False), ("abab", True), ("aaaa", False), ("abcd", False), ("abba", True), ("aaab", False)],
)
def test_model_groups_that_could_have_a_host_each_are_told(hosts: str, scattered: bool) -> None:
    assert Topology(0, 2, 2, "vocabulary").is_scattered(hosts) == scattered
