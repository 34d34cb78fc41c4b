"""Messages from one rank to another by mpi4py, in the MPI that Horovod has started and will end.

They pass in a communicator of their own, beside Horovod's thread: MPI must give MPI_THREAD_MULTIPLE.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from numpy.typing import NDArray

from hvd_lm.errors import ConfigError, LostWorkerError
from hvd_lm.job import launcher

Kind = Literal["activations", "gradients"]
_TAGS: dict[Kind, int] = {"activations": 1, "gradients": 2}
_MOST_ON_THE_WAY = 64
"""Messages to one rank that it has not taken yet."""
_SHORTEST_NAP, _LONGEST_NAP = 2e-5, 5e-4
"""Seconds between two looks for a message. MPI's own wait would keep the core from the rank that works on it."""


def load_mpi() -> ModuleType:
    """mpi4py's MPI, which does not start or end MPI here. Raises ImportError that says what is missing."""
    if importlib.util.find_spec("mpi4py") is None:
        raise ImportError("mpi4py is not installed: pip install 'hvd_lm[mpi]'")
    import mpi4py

    # Horovod's thread starts MPI, and ends it: twice would be an error. Its communicators keep their own handling of errors.
    mpi4py.rc(initialize=False, finalize=False, errors="default")
    try:
        mpi: ModuleType = importlib.import_module("mpi4py.MPI")
    except RuntimeError as error:
        raise ImportError(f"mpi4py finds no MPI ({str(error).splitlines()[0]})") from error
    return mpi


def obstacle(horovod: ModuleType) -> str:
    """Why this rank cannot send point to point beside `horovod`, which has started; empty if it can."""
    if not horovod.mpi_enabled():
        return "Horovod does not run over MPI"
    if horovod.nccl_built():
        return "Horovod is built with NCCL, whose all-to-all leaves them on the GPU"
    try:
        mpi = load_mpi()
    except ImportError as error:
        return str(error)
    if not mpi.Is_initialized():
        return f"mpi4py has loaded another MPI ({library(mpi)}) than Horovod's: see hvd-lm doctor"
    if not horovod.mpi_threads_supported():
        return "MPI does not give MPI_THREAD_MULTIPLE (HOROVOD_MPI_THREADS_DISABLE must not be set)"
    return ""


def library(mpi: ModuleType) -> str:
    """Name and version of the MPI that mpi4py has loaded."""
    return str(mpi.Get_library_version()).replace("\0", "").split(",")[0].splitlines()[0]


def loaded_libraries() -> set[str]:
    """The files of MPI's library that are in this process; none where the system does not tell."""
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        return set()
    return {line.split()[-1] for line in mapped.splitlines() if "/libmpi.so" in line}


@contextmanager
def part_of_job(ranks: Any) -> Iterator[None]:
    """Within, the ranks of a communicator of mpi4py are a job by themselves; None for all. Collective over them.

    Raises ConfigError if this process is not one of them.
    """
    if ranks is None:
        yield
        return
    mpi = load_mpi()
    if ranks == mpi.COMM_NULL:
        raise ConfigError("comm= is no communicator of this process: train on those that MPI's Split or Create_group gave one")
    here = ranks.Split_type(mpi.COMM_TYPE_SHARED)
    local_rank = here.Get_rank()
    here.Free()
    with launcher.part_of_job(ranks.Get_rank(), ranks.Get_size(), local_rank):
        yield


def world_ranks(ranks: Any) -> tuple[int, ...]:
    """Of a communicator of mpi4py, the numbers that MPI's launcher gave its ranks; none of None."""
    if ranks is None:
        return ()
    mpi = load_mpi()
    return tuple(mpi.Group.Translate_ranks(ranks.Get_group(), None, mpi.COMM_WORLD.Get_group()))


def communicator(ranks: Any = None) -> Any:
    """All ranks of the job, or those of a communicator, with messages of their own; one for a process. Collective."""
    mpi = load_mpi()
    return _duplicate((mpi.COMM_WORLD if ranks is None else ranks).handle)


def host_of(ranks: Any = None) -> int:
    """The lowest rank with which this process shares memory, of the job or of a communicator. Collective."""
    everyone, mpi = communicator(ranks), load_mpi()
    here = everyone.Split_type(mpi.COMM_TYPE_SHARED)
    lowest = int(here.allreduce(everyone.Get_rank(), op=mpi.MIN))
    here.Free()
    return lowest


@cache
def _duplicate(handle: int) -> Any:
    mpi = load_mpi()
    made = mpi.Comm.fromhandle(handle).Dup()
    made.Set_errhandler(mpi.ERRORS_RETURN)
    return made


class Link:
    """To one other rank of `communicator`. What is sent arrives there in the same order, of each kind by itself."""

    def __init__(self, communicator: Any, other: int, patience: float) -> None:
        """`patience`: seconds after which the other rank is given up; 0 for never."""
        self._mpi, self._communicator, self._other, self._patience = load_mpi(), communicator, other, patience
        self._leaving: deque[tuple[Any, NDArray[Any]]] = deque()
        self._waited_seconds = 0.0

    def send(self, values: NDArray[Any], kind: Kind) -> None:
        """Returns at once. `values`, contiguous, must stay as they are until the other rank has them.

        Raises LostWorkerError.
        """
        while self._leaving and (len(self._leaving) == _MOST_ON_THE_WAY or self._is_done(self._leaving[0][0])):
            self._wait_for(self._leaving.popleft()[0])
        request = self._communicator.Isend([values, self._mpi.BYTE], self._other, _TAGS[kind])
        self._leaving.append((request, values))

    def receive(self, into: NDArray[Any], kind: Kind) -> None:
        """Returns when `into`, contiguous, holds what the other rank has sent, of that many bytes. Raises LostWorkerError."""
        self._wait_for(self._communicator.Irecv([into, self._mpi.BYTE], self._other, _TAGS[kind]))

    def take_waited_seconds(self) -> float:
        """How long this rank has waited for the other one since this was last asked."""
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited

    def _wait_for(self, request: Any) -> None:
        began, nap = time.perf_counter(), _SHORTEST_NAP
        while not self._is_done(request):
            if 0 < self._patience < time.perf_counter() - began:
                request.Cancel()  # what comes later finds no memory that is used for something else
                raise LostWorkerError(
                    f"rank {self._other} has kept this one waiting for {self._patience:g} seconds: see what it does"
                )
            time.sleep(nap)
            nap = min(1.5 * nap, _LONGEST_NAP)
        self._waited_seconds += time.perf_counter() - began

    def _is_done(self, request: Any) -> bool:
        if self._mpi.Is_finalized():
            raise LostWorkerError("MPI has ended while a message was on its way, probably because another rank ended")
        try:
            return bool(request.Test())
        except self._mpi.Exception as error:
            raise LostWorkerError(f"a message to or from rank {self._other} failed, probably because it ended ({error})") from error
