"""An elastic run: legs in turn. When workers come or go the leg is left, and another one entered with whoever is there.

After each step every worker has the whole run in memory: weights, moments, position and the states of all streams. What is lost
with a worker is the window that was not a step yet; its tokens are read again. The worker that is furthest, by one step at most,
brings all others to where it is.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters import adapter_class, membership
from hvd_lm.adapters.job import Job
from hvd_lm.checkpoint import CheckpointWriter
from hvd_lm.errors import ConfigError, HvdLmError, LostWorkerError, MembersChangedError, RemovedError
from hvd_lm.job import launcher
from hvd_lm.job.agreement import difference, retold, told
from hvd_lm.job.messages import warn
from hvd_lm.job.stop import SIGNALS, Stop
from hvd_lm.training.folder import claimed
from hvd_lm.training.leg import Leg
from hvd_lm.training.metrics import MetricsWriter, Row
from hvd_lm.training.snapshot import Snapshot, passed_on

_Result = TypeVar("_Result")
_SECONDS_UNTIL_WRITTEN = 5.0
"""A new job that takes longer to come together may never do so."""


@dataclass(frozen=True)
class Newest:
    """What the workers of a new leg have, by what the furthest of them tells."""

    step: int | None
    """None: nobody has made a step, or gone on after one."""
    rank: int
    row: Row | None
    """Of that step, for metrics.jsonl."""


NOBODY = Newest(None, 0, None)


class Elastic:
    """What this process brings from leg to leg."""

    def __init__(self, framework: str, stop: Stop, out: Path, keep: int) -> None:
        """Checkpoints, `keep` of them, go into `out` when no leg can be entered. Raises as `adapter_class`, and ConfigError."""
        self._job: type[Job] = adapter_class(framework).job_class
        if self._job.horovod.nccl_built():
            raise ConfigError("--elastic does not go over NCCL yet: build Horovod without it, or train without --elastic")
        self._stop, self._out, self._keep = stop, out, keep
        self._membership = membership(stop)
        self._leg: Leg | None = None
        self._left: Snapshot | None = None
        self._row: Row | None = None
        self._written = False
        """Whether `_left` was offered to the disk."""

    def legs(self, run: Callable[[Elastic], _Result]) -> _Result:
        """What `run` returns, which runs a leg, in the end.

        Raises what it raises, LostWorkerError if no new job comes together, RemovedError; what was done is in a checkpoint then.
        """
        with contextlib.ExitStack() as heard:
            heard.callback(self._membership.close)
            while True:
                try:
                    return run(self)
                except (LostWorkerError, MembersChangedError) as reason:
                    self._leave(reason)
                except HvdLmError as error:
                    if self._left and not isinstance(error, RemovedError):
                        raise type(error)(f"{error}{self._kept()}") from None
                    raise
                # From here on this process has what a signal must not end.
                heard.enter_context(self._stop.signals_heard(*SIGNALS))
                try:
                    self._membership.take_place(self._while_waiting)
                except LostWorkerError as error:
                    raise LostWorkerError(f"{error}{self._kept()}") from None

    def entered(self, leg: Leg, newest: Newest) -> None:
        """From here on this process goes on with what `leg` is, which first does what is still due. Collective."""
        row, metrics = newest.row, leg.outlets.metrics
        is_missing = isinstance(metrics, MetricsWriter) and row is not None and metrics.last_step < leg.step
        leg.row, leg.is_finished = row, not leg.job.tell(is_missing)[0]
        self._leg, self._left, self._row = leg, None, None

    def _leave(self, reason: HvdLmError) -> None:
        if self._leg:
            self._left, self._row = self._leg.left(), self._leg.row
        self._leg = None
        self._written = False
        if isinstance(reason, LostWorkerError) and launcher.launched_rank() == 0:
            warn("a worker is gone, or hangs: going on with those that are left")
        if not self._job.abandon():
            raise LostWorkerError(f"Horovod does not end in this process ({reason}){self._kept()}")

    def newest(self, common: Mapping[str, Any]) -> Newest:
        """Meets the others of a new leg. Raises LostWorkerError.

        A worker that comes must have `common` (`Job.agree`) with them: else it raises ConfigError, and the others go on without it.
        """
        own = {"step": self._left.step if self._left else None, "row": self._row, "common": common, "host": socket.gethostname()}
        words = self._membership.meet("step", own)
        steps = [-1 if word["step"] is None else word["step"] for word in words]
        rank = steps.index(max(steps))
        newest = words[rank]
        if newest["step"] is not None:
            for other, word in enumerate(words):
                if word["step"] is None and (error := difference([newest["common"], word["common"]], ["", word["host"]])):
                    raise error if other == launcher.launched_rank() else LostWorkerError(str(error))
        return Newest(newest["step"], rank, newest["row"])

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What one worker raises within, before it joins, all raise."""
        trouble: HvdLmError | None = None
        try:
            yield
        except HvdLmError as error:
            trouble = error
        words = self._membership.meet("begin", told(trouble) if trouble else None)
        if trouble:
            raise trouble
        for rank, word in enumerate(words):
            if word:
                raise retold(**word, place=f"rank {rank}")

    def snapshot(self, job: Job, newest: Newest) -> Snapshot | None:
        """What rank 0 enters the leg with. Collective."""
        if newest.rank == 0:
            return self._left
        # Rank 0 is one step behind, or new.
        return passed_on(job, self._left, newest.rank)

    # --- when no leg can be entered ----------------------------------------------------------------------

    def _while_waiting(self, seconds: float) -> None:
        if seconds > _SECONDS_UNTIL_WRITTEN:
            self._write()

    def _kept(self) -> str:
        """Where the weights are, for a message."""
        self._write()
        if not self._left:
            return ""
        return f"; the weights of step {self._left.step} are in {self._out}: go on with --resume auto"

    def _write(self) -> None:
        """What this process has as a checkpoint, unless another one has written as much, or writes."""
        if self._written or not self._left:
            return
        self._written = True
        with contextlib.suppress(ConfigError), claimed(self._out):
            found = checkpoints.newest_step(self._out)
            if found is None or found < self._left.step:
                with CheckpointWriter(self._out, self._keep) as writer:
                    writer.write(self._left)
