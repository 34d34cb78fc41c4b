"""Ranks that Gloo's launcher started wait for each other before Horovod starts, as long as the config says.

One may come later than the others: it reads a longer way, or verifies a checkpoint. Gloo itself waits for 30 seconds, and then
aborts the process. (The workers of an elastic job have met already: hvd_lm.adapters.membership.)
"""

from __future__ import annotations

import os
import time

from hvd_lm.errors import LostWorkerError
from hvd_lm.job import launcher
from hvd_lm.job.rendezvous import Store

_SCOPE = "hvd_lm.meeting"
_LONGEST_PAUSE = 0.5
_NAMED = 4


def await_ranks(patience: float) -> None:
    """Returns when all ranks of the job have called it; at once where the launcher has no store to leave a word in.

    Raises LostWorkerError after `patience` seconds (0: never), or if the launcher is gone.
    """
    address, _, port = launcher.meeting_place().rpartition(":")
    if not address or "HOROVOD_ELASTIC" in os.environ:
        return
    store, rank, size = Store(address, int(port)), launcher.launched_rank(), launcher.launched_size()
    deadline = time.monotonic() + patience
    missing = set(range(size))
    pause = 0.01
    try:
        store.put(_SCOPE, str(rank), b"here")
        while missing := {other for other in missing if store.get(_SCOPE, str(other)) is None}:
            if patience and time.monotonic() > deadline:
                raise LostWorkerError(
                    f"rank(s) {_names(missing)} did not come to the job within {patience:g} s (--stall-shutdown-seconds): look "
                    "what they do, then start the job again"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    except OSError as error:
        raise LostWorkerError(f"the launcher does not answer at {address}:{port} ({error}): start the job again") from error


def _names(ranks: set[int]) -> str:
    first = sorted(ranks)[:_NAMED]
    return ", ".join(map(str, first)) + (", ..." if len(ranks) > _NAMED else "")
