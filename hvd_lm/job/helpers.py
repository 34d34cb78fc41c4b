"""Work that the ranks of an MPI job share through mpi4py.futures: rank 0 reads and writes, the others help.

Nothing but rank 0's own files need be on a file system that all see: what the others work on comes and goes as messages.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol, TypeVar

from hvd_lm.errors import ConfigError
from hvd_lm.job.agreement import Trouble, source_digest
from hvd_lm.job.launcher import launched_by_mpi, launched_rank, launched_size
from hvd_lm.job.messages import warn
from hvd_lm.job.point_to_point import load_mpi
from hvd_lm.job.threads import default_threads

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_AHEAD = 2
"""Items that a helper has beside the one it works on, so that it need not wait for the next."""
_KEPT = 16
"""Results for each helper that wait for an earlier one at most: memory does not grow with the text."""


class Spread(Protocol):
    """The results of ``work`` for each of ``items``, in their order, whoever does it."""

    def __call__(self, work: Callable[[_Item], _Result], items: Iterable[_Item], /) -> Iterator[_Result]: ...


def in_turn(work: Callable[[_Item], _Result], items: Iterable[_Item], /) -> Iterator[_Result]:
    """By this process alone."""
    return map(work, items)


@contextmanager
def helpers(common: Mapping[str, Any]) -> Iterator[Spread | None]:
    """On rank 0, what spreads work over all ranks of the job; on the others None, when rank 0's block has ended. Collective.

    Without MPI rank 0 works alone. Raises ConfigError, before anything is done, if MPI launched and mpi4py cannot follow, or on all
    ranks alike if their versions or what they have in `common` differ.
    """
    if launched_size() == 1:
        yield in_turn
    elif not launched_by_mpi():
        warn("these ranks cannot share the work, and rank 0 does it alone: mpirun, or srun --mpi=pmix, lets them")
        yield None if launched_rank() else in_turn
    else:
        mpi = _started()
        everyone, futures = mpi.COMM_WORLD, importlib.import_module("mpi4py.futures")
        _agree(everyone, common)
        if everyone.Get_rank():
            while everyone.bcast(None):
                with futures.MPICommExecutor(everyone):
                    pass
            yield None
        else:
            spread = _Helped(everyone, futures.MPICommExecutor)
            try:
                yield spread
            except Exception:
                spread.end()
                mpi.Finalize()
                raise
            spread.end()
        mpi.Finalize()


def _started() -> ModuleType:
    """MPI, running. Raises ConfigError if mpi4py cannot load it, or does not see the job."""
    advice = "or start one process, without the launcher"
    try:
        mpi = load_mpi()
    except ImportError as error:
        raise ConfigError(f"the ranks cannot share the work, as {error}; {advice}") from error
    # Tokenizers read it once. A rank that waits must not poll on a core that another one works on.
    for name, value in (("RAYON_NUM_THREADS", str(default_threads())), ("OMPI_MCA_mpi_yield_when_idle", "1")):
        os.environ.setdefault(name, value)
    mpi.Init_thread(mpi.THREAD_MULTIPLE)
    if mpi.COMM_WORLD.Get_size() != launched_size():
        raise ConfigError(
            f"the launcher started {launched_size()} processes, but MPI sees {mpi.COMM_WORLD.Get_size()}: use the mpirun or srun "
            f"of the MPI that mpi4py takes (hvd-lm doctor), {advice}"
        )
    return mpi


def _agree(everyone: Any, common: Mapping[str, Any]) -> None:
    """Raises ConfigError on all ranks if they differ in `common`, or in what makes their work the same."""
    versions = {f"have another {name}": importlib.metadata.version(name) for name in ("numpy", "tokenizers", "mpi4py")}
    values = {"have another source of hvd_lm": source_digest(), **versions, **common}
    places = [f"rank {rank} on {host}" for rank, host in enumerate(everyone.allgather(os.uname().nodename))]
    if error := Trouble().verdict(everyone.allgather(Trouble().word(values)), places):
        raise error


class _Helped:
    """Rank 0's side: spreads work over itself and its helpers."""

    def __init__(self, everyone: Any, executor: Callable[..., Any]) -> None:
        self._everyone, self._executor = everyone, executor
        self._last: Iterator[Any] = iter(())

    def __call__(self, work: Callable[[_Item], _Result], items: Iterable[_Item], /) -> Iterator[_Result]:
        self._last = self._spread(work, items)
        return self._last

    def _spread(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        self._everyone.bcast(True)
        # The work, with the tokenizer that it may hold, goes to each helper once.
        with self._executor(self._everyone, initializer=_take, initargs=(work,)) as executor:
            try:
                yield from in_order(executor, self._everyone.Get_size() - 1, work, items)
            finally:
                executor.shutdown(wait=False, cancel_futures=True)

    def end(self) -> None:
        """Let the helpers go, whatever work is not done yet."""
        if close := getattr(self._last, "close", None):
            close()
        self._everyone.bcast(False)


def in_order(executor: Executor, helpers: int, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """The results in the order of `items`: of `helpers` that have taken the work (`_take`), and of this process when all are."""
    pending: deque[Future[_Result]] = deque()
    for item in items:
        if sum(not future.done() for future in pending) < (1 + _AHEAD) * helpers:
            pending.append(executor.submit(_do, item))
        else:
            own: Future[_Result] = Future()
            own.set_result(work(item))
            pending.append(own)
        while pending and (pending[0].done() or len(pending) > _KEPT * helpers):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


_taken: Callable[[Any], Any]


def _take(work: Callable[[Any], Any]) -> None:
    global _taken
    _taken = work


def _do(item: Any) -> Any:
    return _taken(item)
