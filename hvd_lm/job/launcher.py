"""This process within its job: what the launcher (horovodrun, mpirun, none) says in the environment.

Nothing here needs Horovod: it serves before `hvd.init()`, and where the initialisation itself fails.
"""

from __future__ import annotations

import os

# In the order of trust: Horovod's Gloo launcher, OpenMPI, PMI (MPICH, Intel MPI), a step that srun started.
_RANK = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_SIZE = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_LOCAL_SIZE = ("HOROVOD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE")


def _first(names: tuple[str, ...], default: int) -> int:
    for name in names:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return default


def launched_rank() -> int:
    """Rank of this process in its job; 0 if it runs alone."""
    return _first(_RANK, 0)


def launched_size() -> int:
    """Processes in the job; 1 if it runs alone."""
    return _first(_SIZE, 1)


def launched_local_size() -> int:
    """Processes of the job on this machine."""
    return _first(_LOCAL_SIZE, 1)


_LOCAL_RANK = ("HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")


def launched_local_rank() -> int:
    """Rank of this process among those of its machine; 0 if it runs alone, or the launcher does not say."""
    return _first(_LOCAL_RANK, 0)
