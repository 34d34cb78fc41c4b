"""Ranks that Gloo's launcher started wait for each other before Horovod starts, as long as the config says.

One may come later than the others: it reads a longer way, or verifies a checkpoint. Gloo itself waits for 30 seconds, and then
aborts the process.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request

from hvd_lm.errors import LostWorkerError

_SCOPE = "hvd_lm-meeting"
_LONGEST_PAUSE = 0.5
_NAMED = 4


def await_ranks(patience: float) -> None:
    """Returns when all ranks of the job have called it; at once where the launcher has no store to leave a word in.

    Raises LostWorkerError after `patience` seconds (0: never), or if the launcher is gone.
    """
    address, port = (os.environ.get(f"HOROVOD_GLOO_RENDEZVOUS_{name}") for name in ("ADDR", "PORT"))
    if not address or not port or os.environ.get("HOROVOD_ELASTIC") == "1":
        return
    rank, size = (int(os.environ[f"HOROVOD_{name}"]) for name in ("RANK", "SIZE"))
    store = f"http://{address}:{port}/{_SCOPE}"
    deadline = time.monotonic() + patience
    missing = set(range(size))
    pause = 0.01
    try:
        _ask(urllib.request.Request(f"{store}/{rank}", data=b"here", method="PUT"))
        while missing := {other for other in missing if not _ask(urllib.request.Request(f"{store}/{other}"))}:
            if patience and time.monotonic() > deadline:
                raise LostWorkerError(
                    f"rank(s) {_names(missing)} did not come to the job within {patience:g} s (--stall-shutdown-seconds): look "
                    "what they do, then start the job again"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    except OSError as error:
        raise LostWorkerError(f"the launcher does not answer at {address}:{port} ({error}): start the job again") from error


def _ask(request: urllib.request.Request) -> bool:
    """Whether the store has it. Raises OSError if the store is gone."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            return True
    except urllib.error.HTTPError:
        return False


def _names(ranks: set[int]) -> str:
    first = sorted(ranks)[:_NAMED]
    return ", ".join(map(str, first)) + (", ..." if len(ranks) > _NAMED else "")
