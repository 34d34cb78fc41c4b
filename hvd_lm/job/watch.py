"""A rank that waits for others in vain ends by itself, where nothing else can end it.

Horovod's own watch (HOROVOD_STALL_SHUTDOWN_TIME_SECONDS) needs an answer of every rank. A process that was stopped, or a host that
is cut off, gives none: then Gloo gives up after its time-out, and MPI never does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

from hvd_lm.errors import LostWorkerError
from hvd_lm.job.launcher import launched_rank

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_FOR_RANK_0 = 10.0
"""How long the other ranks wait for it to tell, and for the launcher to end the job."""


class Watch:
    """Of the main thread of this rank, by a thread beside it."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds without a sign after which this process ends; 0 for never."""
        self._patience = patience
        self._silent = 0.0
        self._blocks = 0
        self._gone = threading.Event()

    def sign(self) -> None:
        """It goes on: other ranks, if it has waited for them, have answered."""
        self._silent = 0.0

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Within, the main thread gives signs, or this process ends."""
        self.sign()
        self._blocks += 1
        if self._blocks == 1 and self._patience:
            self._gone = threading.Event()
            threading.Thread(target=self._look, args=(self._gone,), name="watch", daemon=True).start()
        try:
            yield
        finally:
            self._blocks -= 1
            if not self._blocks:
                self._gone.set()

    def _look(self, gone: threading.Event) -> None:
        before = time.monotonic()
        while not gone.wait(_SECONDS_BETWEEN_LOOKS):
            now = time.monotonic()
            # A process that was stopped itself, as schedulers do to whole jobs, has not waited meanwhile.
            self._silent += min(now - before, 2 * _SECONDS_BETWEEN_LOOKS)
            before = now
            if self._silent > self._patience:
                self._end(gone)

    def _end(self, gone: threading.Event) -> None:
        rank = launched_rank()
        if rank and gone.wait(_SECONDS_FOR_RANK_0):
            return
        print(
            f"hvd-lm: error: rank {rank} has waited for the others for {self._patience:g} s (--stall-shutdown-seconds): one of "
            "them hangs or was stopped, or the network between them is cut: look after their hosts, then start the job again, "
            "training with --resume auto",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LostWorkerError.exit_code)
