"""This process within its job: what the launcher (horovodrun, mpirun, none) says in the environment.

Nothing here needs Horovod: it serves before `hvd.init()`, and where the initialisation itself fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from hvd_lm.config import CommunicationConfig

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


def default_threads() -> int:
    """Compute threads for a rank: the cores that this process may use, shared by the ranks of the machine."""
    return max(1, len(os.sched_getaffinity(0)) // launched_local_size())


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Let glibc keep the memory of large arrays that are freed, and hand it out again; nothing where there is no glibc.

    It would give it back to the system, which then clears each page when a new array touches it: a tenth of a training step in
    PyTorch, and most of the time that a checkpoint holds training up in TensorFlow.
    The environment's own settings (MALLOC_..., GLIBC_TUNABLES) win.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)  # what one thread frees serves the others too
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Give what is free within glibc's heap back to the system: after a start, room that training may never need again."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def warn(message: str) -> None:
    """Tell the user something that does not end the job: one line on standard error, by rank 0."""
    if launched_rank() == 0:
        print(f"hvd-lm: warning: {message}", file=sys.stderr, flush=True)


_OPENMPI = {
    # Its own choice takes up to twice the time that the link needs, the ring no more than a tenth above it.
    "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
    "OMPI_MCA_coll_tuned_dynamic_rules_filename": str(Path(__file__).with_name("openmpi_allreduce.conf")),
    # In one piece, the data of a rank would hold up its answers to the other's requests: both directions take turns then.
    "OMPI_MCA_btl_tcp_rdma_pipeline_frag_size": str(2**17),
}


@contextlib.contextmanager
def horovod_environment(config: CommunicationConfig) -> Iterator[None]:
    """The environment for `hvd.init()`, when Horovod reads the levers of `config` from it, once.

    A variable that is set already (by horovodrun or the user) stays. Afterwards the environment is as before, so that a job
    launched from this process does not inherit what was meant for it alone.
    """
    settings = {"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": str(config.stall_shutdown_seconds), **_OPENMPI}
    if config.fusion_threshold_mb is not None or not config.autotune:
        # Few and large as the tensors are, a message for each costs less than copies into a buffer and out of it.
        settings["HOROVOD_FUSION_THRESHOLD"] = str((config.fusion_threshold_mb or 0) * 2**20)
    if config.cycle_time_ms is not None:
        settings["HOROVOD_CYCLE_TIME"] = str(config.cycle_time_ms)
    if config.autotune:
        settings["HOROVOD_AUTOTUNE"] = "1"
    if config.timeline_filename is not None:
        settings["HOROVOD_TIMELINE"] = str(config.timeline_filename)
    if config.hierarchical_allreduce:
        settings["HOROVOD_HIERARCHICAL_ALLREDUCE"] = "1"
    if launched_size() == 1:
        # Without a launcher MPI would start a daemon for its singleton; Gloo needs nothing.
        settings |= {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
    if launched_local_size() * default_threads() >= len(os.sched_getaffinity(0)):
        # OpenMPI otherwise polls on the core that a rank computes on.
        settings["OMPI_MCA_mpi_yield_when_idle"] = "1"
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
