"""What the ranks of a group do together, judged by NumPy; and that a process can join twice."""

from __future__ import annotations

import sys

import launcher
import numpy as np
import pytest
from conftest import INSTALLED

from hvd_lm.adapters import adapter_class
from hvd_lm.adapters.job import Group, device_of
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model.split import whole
from hvd_lm.model.stages import parameters

pytestmark = pytest.mark.ranks

GROUPS = {"all": [[0, 1, 2, 3]], "data": [[0, 2], [1, 3]], "model": [[0, 1], [2, 3]]}


def test_collectives_of_every_group(framework: str) -> None:
    results = launcher.body("collectives", 4, framework)
    for joined in range(2):
        assert [rank[joined]["word"]["broadcast"] for rank in results] == [{"rank": 0, "text": "a\nb"}] * 4
        (said,) = {rank[joined]["word"]["disagree"] for rank in results}
        assert said.startswith("1 of 4 ranks read another text than rank 0 (odd instead of same: rank 3 on ")
        for name, groups in GROUPS.items():
            for ranks in groups:
                check_group([results[rank][joined][name] for rank in ranks], ranks)


def check_group(found: list[dict], ranks: list[int]) -> None:
    """`found` of each of `ranks`."""
    size = len(ranks)
    total = sum(np.arange(2 * size) + 100 * rank for rank in ranks)
    splits = range(1, size + 1)
    for place, its in enumerate(found):
        assert (its["ranks"], its["place"]) == (ranks, place)
        assert its["sum"] == [sum(ranks), 0.5 * size]
        assert its["gather"] == [[[rank, rank]] for rank in ranks]
        assert its["scatter_sum"] == list(total[2 * place : 2 * place + 2])
        before = sum(splits[:place])
        assert its["received"] == [before + row + 100 * rank for rank in ranks for row in range(splits[place])]
        assert its["counts"] == [splits[place]] * size
        assert its["told"] == [{"rank": rank, "text": "a\nb"} for rank in ranks]
    assert min(its["left"] for its in found) >= max(its["arrived"] for its in found)


def test_a_second_job_of_a_process_needs_groups_that_the_first_one_had() -> None:
    """Horovod cannot make them later on one rank alone."""
    for refusal in launcher.body("collectives", 4, INSTALLED[0], "plain"):
        assert "use one topology in a process" in refusal


def test_one_rank_over_mpi_joins_twice(framework: str) -> None:
    """MPI cannot be started again once it has ended."""
    code = (
        "from hvd_lm.adapters import adapter_class\n"
        f"join = adapter_class({framework!r}).job_class\n"
        "print([join(threads=1).summary().split()[-1] for _ in range(2)])\n"
    )
    mpi = {"HOROVOD_CONTROLLER": "mpi", "HOROVOD_CPU_OPERATIONS": "mpi"}
    assert "['MPI', 'MPI']" in launcher.run("mpirun", "-np", "1", sys.executable, "-c", code, **mpi).expect_success().output


def test_a_rank_takes_the_device_of_its_place() -> None:
    assert [device_of(local_rank, 2) for local_rank in range(2)] == [0, 1]
    with pytest.raises(ConfigError, match=r"no GPU is left for local rank 2: start at most 2 rank\(s\) on this host"):
        device_of(2, 2)


def test_a_rank_that_is_shown_one_device_takes_it() -> None:
    """Schedulers hide those of the other ranks: each then sees device 0."""
    assert device_of(3, 1) == 0


def test_a_tensor_that_horovod_cannot_count_is_refused(framework: str) -> None:
    job = adapter_class(framework).job_class(threads=1)
    large = whole(next(iter(parameters(ModelConfig(vocabulary_size=2**22, embedding_size=2**9)).values())))
    assert job.holders(large).size == 1
    job.groups = {**job.groups, "readers": Group((0, 1), 0, None)}
    with pytest.raises(ConfigError, match=r"2,147,483,648 values.*--vocabulary-size"):
        job.holders(large)


def test_a_model_with_such_a_tensor_is_refused_before_its_memory_is_taken(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its gradients would travel: who only reads shares nothing."""
    kind = adapter_class(framework)
    made: list[str] = []
    monkeypatch.setattr(kind, "_make", lambda adapter: made.append(adapter.framework))
    job = kind.job_class(threads=1)
    job.groups = {**job.groups, "readers": Group((0, 1), 0, None)}
    model = ModelConfig(vocabulary_size=2**22, embedding_size=2**9, hidden_size=8)
    with pytest.raises(ConfigError, match="embedding has 2,147,483,648 values"):
        kind(job).build(model, OptimizerConfig())
    assert made == []
    kind(job).build(model)
    assert made == [framework]


def test_alone_nothing_travels(framework: str) -> None:
    job = adapter_class(framework).job_class(threads=1)
    assert [group.communicates for group in job.groups.values()] == [False] * 4
    values = np.array([1.5, 2.0])
    np.testing.assert_array_equal(job.sum(values), values)
    np.testing.assert_array_equal(job.gather(values), [values])
    np.testing.assert_array_equal(job.scatter_sum(values), values)
    received, counts = job.exchange(values, [2])
    np.testing.assert_array_equal(received, values)
    assert (counts, job.tell("text"), job.broadcast({"a": 1})) == ([2], ["text"], {"a": 1})
    job.agree({"read another text": "any"})
    job.barrier()
