"""What a process takes itself for: by the variables of the launcher that started it, and of no other."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from hvd_lm.errors import ConfigError
from hvd_lm.job.launcher import (
    alone,
    check_launch,
    is_bound,
    launched_by_mpi,
    launched_local_rank,
    launched_local_size,
    launched_place,
    launched_rank,
    launched_size,
    part_of_job,
)

_PREFIXES = ("HOROVOD_", "OMPI_", "PMI", "SLURM_", "MPI_")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(_PREFIXES)]:
        monkeypatch.delenv(name)


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[int, int, int]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return launched_rank(), launched_size(), launched_local_size()


def test_a_process_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch) == (0, 1, 1)
    check_launch()


def test_a_rank_of_each_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "9", "SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "1"}
    assert launched(monkeypatch, **slurm) == (5, 9, 4)
    assert launched(monkeypatch, PMI_RANK="1", PMI_SIZE="3", MPI_LOCALNRANKS="3") == (1, 3, 3)
    openmpi = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert launched(monkeypatch, **openmpi) == (2, 4, 2)
    assert launched(monkeypatch, HOROVOD_RANK="0", HOROVOD_SIZE="2", HOROVOD_LOCAL_SIZE="1") == (0, 2, 1)


def test_who_launched_with_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launched_by_mpi()
    launched(monkeypatch, SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="2")
    assert not launched_by_mpi()
    launched(monkeypatch, PMIX_RANK="0")
    assert launched_by_mpi()
    launched(monkeypatch, OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2")
    assert launched_by_mpi()
    launched(monkeypatch, HOROVOD_RANK="0", HOROVOD_SIZE="2")
    assert not launched_by_mpi()


@pytest.mark.parametrize(
    ("tasks", "node", "expected"),
    [("4(x2)", "0", 4), ("4(x2)", "1", 4), ("2,1", "0", 2), ("2,1", "1", 1), ("2(x3),1", "3", 1), ("7", "0", 7), ("", "0", 1)],
)
def test_slurm_counts_the_tasks_of_every_node(monkeypatch: pytest.MonkeyPatch, tasks: str, node: str, expected: int) -> None:
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node}
    assert launched(monkeypatch, **step)[2] == expected


def test_variables_of_two_launchers_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch script's own variables name a rank without a size; what mpirun starts in it is mpirun's."""
    assert launched(monkeypatch, SLURM_PROCID="0", OMPI_COMM_WORLD_SIZE="4") == (0, 1, 1)
    check_launch()
    assert launched(monkeypatch, OMPI_COMM_WORLD_RANK="3") == (3, 4, 1)
    check_launch()


@pytest.mark.parametrize("size", [None, "2"])
def test_a_rank_that_its_job_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch, size: str | None) -> None:
    launched(monkeypatch, HOROVOD_RANK="2", **({"HOROVOD_SIZE": size} if size else {}))
    with pytest.raises(ConfigError, match=r"HOROVOD_RANK=2 .* HOROVOD_SIZE is (not set|2)"):
        check_launch()


def test_what_a_job_left_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a process would leave the work to a rank 0 that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as meeting:
        address, port = meeting.getsockname()
        rendezvous = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": address, "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port)}
        launched(monkeypatch, HOROVOD_RANK="1", HOROVOD_SIZE="2", **rendezvous)
        check_launch()
    with pytest.raises(ConfigError, match="no longer there"):
        check_launch()


def test_what_mpirun_left_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launched(monkeypatch, OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="2", PMIX_SERVER_TMPDIR=str(tmp_path))
    check_launch()
    monkeypatch.setenv("PMIX_SERVER_TMPDIR", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="no longer there"):
        check_launch()


def test_a_rank_that_works_alone_is_one_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, HOROVOD_RANK="1", HOROVOD_SIZE="2", HOROVOD_LOCAL_SIZE="2", HOROVOD_CYCLE_TIME="3")
    with alone():
        assert (launched_rank(), launched_size(), launched_local_size()) == (0, 1, 1)
        assert os.environ["HOROVOD_CYCLE_TIME"] == "3"
    assert (launched_rank(), launched_size(), launched_local_size()) == (1, 2, 2)


def test_a_part_of_a_job_is_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks keep their share of the machine, and their device."""
    its = {"RANK": "3", "SIZE": "4", "LOCAL_RANK": "3", "LOCAL_SIZE": "4"}
    launched(monkeypatch, **{f"OMPI_COMM_WORLD_{name}": value for name, value in its.items()})
    with part_of_job(rank=1, size=2, local_rank=1):
        assert (launched_rank(), launched_size(), launched_local_rank(), launched_local_size()) == (1, 2, 1, 4)
        assert launched_place() == 3
        with alone():
            assert (launched_rank(), launched_size()) == (0, 1)
    assert (launched_rank(), launched_size(), launched_local_rank(), launched_place()) == (3, 4, 3, 3)


@pytest.mark.parametrize(
    ("variables", "bound"),
    [
        ({}, False),
        ({"OMPI_MCA_orte_bound_at_launch": "1"}, True),
        ({"SLURM_CPU_BIND_TYPE": "mask_cpu:"}, True),
        ({"SLURM_CPU_BIND_TYPE": "none"}, False),
    ],
)
def test_ranks_that_were_bound(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], bound: bool) -> None:
    launched(monkeypatch, **variables)
    assert is_bound() is bound
