"""Ranks that Gloo's launcher started wait for each other before Horovod starts, as long as the config says.

One may come later than the others: it reads a longer way, or verifies a checkpoint. Gloo itself waits for 30 seconds, and then
aborts the process. (The workers of an elastic job have met already: hvd_lm.adapters.membership.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from hvd_lm.errors import LostWorkerError
from hvd_lm.job import launcher
from hvd_lm.job.rendezvous import Store

_SCOPE = "hvd_lm.meeting"
_NAMED = 4


def await_ranks(patience: float) -> None:
    """Returns when all ranks of the job have called it; at once where the launcher has no store to leave a word in.

    Raises LostWorkerError after `patience` seconds (0: never), or if the launcher is gone.
    """
    place = launcher.meeting_place()
    if place is None or "HOROVOD_ELASTIC" in os.environ:
        return
    deadline = time.monotonic() + patience

    def check(missing: Sequence[int]) -> None:
        if patience and time.monotonic() > deadline:
            raise LostWorkerError(
                f"rank(s) {_names(missing)} did not come to the job within {patience:g} s (--stall-shutdown-seconds): look "
                "what they do, then start the job again"
            )

    try:
        Store(*place).meet(_SCOPE, launcher.launched_rank(), launcher.launched_size(), b"here", check)
    except OSError as error:
        raise LostWorkerError(f"the launcher does not answer at {place[0]}:{place[1]} ({error}): start the job again") from error


def _names(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:_NAMED])) + (", ..." if len(ranks) > _NAMED else "")
