"""This process within its job: what the launcher (horovodrun, mpirun, srun, none) says in the environment.

Nothing here needs Horovod: it serves before `hvd.init()`, and where the initialisation itself fails.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hvd_lm.errors import ConfigError


@dataclass(frozen=True)
class _Launcher:
    """A way to start ranks, and the variables in which it tells each what it is."""

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str


_PART = _Launcher("part_of_job", "HVD_LM_PART_RANK", "HVD_LM_PART_SIZE", "HVD_LM_PART_LOCAL_RANK", "HVD_LM_PART_LOCAL_SIZE")
# In the order of trust.
_LAUNCHERS = (
    _PART,
    _Launcher("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    _Launcher("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    _Launcher("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI
    _Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)

_OF_A_JOB = (
    "HVD_LM_PART_",
    "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_", "HOROVOD_CROSS_", "HOROVOD_HOSTNAME", "HOROVOD_GLOO_RENDEZVOUS_",
    "HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS", "HOROVOD_ELASTIC",
    "OMPI_COMM_WORLD_", "OMPI_MCA_orte_", "OMPI_MCA_ess_", "PMI_", "PMIX_", "MPI_LOCAL",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_",
)  # fmt: skip
"""How the variables begin that make a process a rank."""


_NAMES = ("HOROVOD_GLOO_RENDEZVOUS_ADDR", "HOROVOD_GLOO_RENDEZVOUS_PORT", "PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID")
"""What launchers call a job, or where its ranks meet."""


def launched_rank() -> int:
    """Rank of this process in its job; 0 if it runs alone."""
    found = _launcher()
    return _number(found.rank) or 0 if found else 0


def launched_size() -> int:
    """Processes in the job; 1 if it runs alone."""
    found = _launcher()
    return _number(found.size) or 1 if found else 1


def launched_local_rank() -> int:
    """Rank of this process among those of its machine; 0 if it runs alone, or the launcher does not say."""
    found = _launcher()
    return _number(found.local_rank) or 0 if found else 0


def launched_local_size() -> int:
    """Processes of the job on this machine."""
    found = _launcher()
    if found is None:
        return 1
    if found.name == "srun":
        return _of_this_node(os.environ.get(found.local_size, ""))
    return _number(found.local_size) or 1


def launched_by_mpi() -> bool:
    """Whether the launcher lets the processes that it starts find each other by MPI."""
    found = _launcher()
    if found and found.name == "srun":
        return any(_number(name) is not None for name in ("PMIX_RANK", "PMI_RANK"))
    return found is not None and found.name in ("mpirun", "mpiexec")


def launched_place() -> int:
    """As `launched_local_rank`, among all processes that were launched, whatever part of them is a job by itself."""
    found = next((launcher for launcher in _LAUNCHERS if launcher is not _PART and _says(launcher)), None)
    return _number(found.local_rank) or 0 if found else 0


def job_name() -> str:
    """The same for all ranks of a job on this machine, and for no other job that runs; empty if the launcher has no name for it."""
    return " ".join(os.environ.get(name, "") for name in _NAMES).strip()


def meeting_place() -> tuple[str, int] | None:
    """Address and port at which the ranks of a job of horovodrun over Gloo meet, which no other job has."""
    address, port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR"), _number("HOROVOD_GLOO_RENDEZVOUS_PORT")
    return (address, port) if address and port else None


@contextmanager
def part_of_job(rank: int, size: int, local_rank: int) -> Iterator[None]:
    """Within, this process is one of `size` ranks, of which it is the `local_rank`-th on its machine.

    The machine's cores stay shared with all that were launched there.
    """
    values = (rank, size, local_rank, launched_local_size())
    names = (_PART.rank, _PART.size, _PART.local_rank, _PART.local_size)
    os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)})
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def is_bound() -> bool:
    """Whether the launcher gave each rank of this machine cores of its own."""
    by_openmpi = os.environ.get("OMPI_MCA_orte_bound_at_launch") == "1"  # noqa: SIM112 - its own spelling
    return by_openmpi or os.environ.get("SLURM_CPU_BIND_TYPE", "").startswith(("mask_cpu", "map_cpu"))


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process runs by itself, although it is a rank of a job: it does what needs no other rank."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_OF_A_JOB)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def check_launch() -> None:
    """Raises ConfigError if the environment makes this process a rank of a job that cannot be."""
    for launcher in _LAUNCHERS:
        rank, size = _number(launcher.rank), _number(launcher.size)
        if rank and (size is None or rank >= size):
            raise ConfigError(
                f"{launcher.rank}={rank} makes this process a rank of a job of {launcher.name}, but "
                f"{launcher.size} is {'not set' if size is None else size}: start it with horovodrun, or unset {launcher.rank}"
            )
    found = _launcher()
    if found and launched_size() > 1 and _is_gone(found):
        raise ConfigError(
            f"{found.rank} makes this process a rank of a job of {found.name} that is no longer there: unset it, or start with "
            "horovodrun anew"
        )


def _launcher() -> _Launcher | None:
    """The one that started this process: its variables are all there."""
    for launcher in _LAUNCHERS:
        if _says(launcher):
            return launcher
    return None


def _says(launcher: _Launcher) -> bool:
    return _number(launcher.rank) is not None and _number(launcher.size) is not None


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None


def _of_this_node(tasks_per_node: str) -> int:
    """Slurm names the tasks of all nodes in turn: ``4(x2),1`` are 4, 4 and 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(count)] * int(times or 1)
    node = _number("SLURM_NODEID") or 0
    return max(1, counts[node]) if node < len(counts) else 1


def _is_gone(launcher: _Launcher) -> bool:
    """Whether what ranks meet at has ended: their variables are then left over from an earlier job."""
    if launcher.name == "horovodrun" and (place := meeting_place()):
        try:
            socket.create_connection(place, timeout=5).close()
        except ConnectionRefusedError:
            return True
        except OSError:  # Horovod will say what is wrong
            return False
    if launcher.name == "mpirun":
        folder = os.environ.get("PMIX_SERVER_TMPDIR")
        return folder is not None and not Path(folder).is_dir()
    return False


def refuse_elastic_launcher() -> None:
    """Raises ConfigError if workers of this job may come and go, of which nobody has told this process."""
    if os.environ.get("HOROVOD_ELASTIC") == "1":
        raise ConfigError("workers of this job may come and go: train with --elastic, or start with horovodrun -np N alone")


def refuse_unknown_launcher() -> None:
    """Raises ConfigError if another launcher (torchrun, or an operator of Kubernetes) says that this process is one of several."""
    said = [f"{name}={os.environ[name]}" for name, alone in (("WORLD_SIZE", 1), ("RANK", 0)) if (_number(name) or 0) > alone]
    if said and _launcher() is None:
        raise ConfigError(
            f"{' '.join(said)} says that this is one of several processes, but none of Horovod's launchers started it: start them "
            "with horovodrun, mpirun or srun, or unset that variable to run alone"
        )
