"""This process within its job: what the launcher (horovodrun, mpirun, none) says in the environment.

Nothing here needs Horovod: it serves before `hvd.init()`, and where the initialisation itself fails.
"""

from __future__ import annotations

import os

from hvd_lm.errors import ConfigError

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


def refuse_unknown_launcher() -> None:
    """Raises ConfigError if another launcher (torchrun, or an operator of Kubernetes) says that this process is one of several."""
    said = [f"{name}={os.environ[name]}" for name, alone in (("WORLD_SIZE", 1), ("RANK", 0)) if _first((name,), alone) > alone]
    if said and launched_size() == 1 and "HOROVOD_RANK" not in os.environ:
        raise ConfigError(
            f"{' '.join(said)} says that this is one of several processes, but none of Horovod's launchers started it: start them "
            "with horovodrun, mpirun or srun, or unset that variable to run alone"
        )
