"""Who takes part in an elastic job: what this worker and Horovod's elastic launcher tell each other, and the workers each other.

    horovodrun          one place (rank, size, ...) for each worker, whenever workers have come or gone
    the workers         meet in the launcher's store before they start Horovod: nobody waits in it for one that is not there yet

A place is in the environment, as of any job of horovodrun: hvd_lm.job.launcher reads it, and so does Horovod when it starts.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from horovod.runner.elastic.worker import WorkerNotificationManager

from hvd_lm.errors import ConfigError, LostWorkerError, RemovedError
from hvd_lm.job import launcher
from hvd_lm.job.rendezvous import PLACES, Store
from hvd_lm.job.stop import Stop

_PLACE = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
"""In the order of the launcher's answer, as HOROVOD_..."""
_DEFAULTS = {
    # A worker that waits for one which has noticed the end of a third, and left, may not hear of it.
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "15",
    # What Horovod says of every lost connection buries what is said here.
    "HOROVOD_LOG_LEVEL": "fatal",
}
_SECONDS_BETWEEN_SIGNS = 2.0
SECONDS_OF_SILENCE = 30.0
"""After so long without a sign of life, of one that has not come to a meeting yet, it is taken for dead."""
SECONDS_FOR_A_PLACE = 600.0
"""The launcher gives up after as long, unless HOROVOD_ELASTIC_TIMEOUT says otherwise."""
_SECONDS_TO_STOP = 5.0
"""So long one that is asked to stop waits for the others, to stop with them."""
_NAP = 0.1
_ALIVE = "hvd_lm.alive"


class Membership:
    """Of this process."""

    def __init__(self, stop: Stop) -> None:
        """`stop` is told when workers come or go. Raises ConfigError if no elastic launcher has started this process."""
        self._stop = stop
        try:
            if (place := launcher.meeting_place()) is None or os.environ["HOROVOD_ELASTIC"] != "1":
                raise KeyError("HOROVOD_ELASTIC")
            self._key = f"{os.environ['HOROVOD_HOSTNAME']}:{os.environ['HOROVOD_LOCAL_RANK']}"
        except KeyError as error:
            raise ConfigError(
                f"--elastic needs a launcher that lets workers come and go ({error} is not set): start with horovodrun --min-np A "
                "--max-np B --host-discovery-script SCRIPT"
            ) from None
        self._store = Store(*place)
        # Horovod would ask for a place by itself, and wait where nobody can stop it.
        os.environ["HOROVOD_ELASTIC"] = "0"
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._heard = WorkerNotificationManager()
        self._heard.init()
        self._heard.register_listener(self)
        self._ended = threading.Event()
        threading.Thread(target=self._give_signs, name="signs of life", daemon=True).start()

    def on_hosts_updated(self, timestamp: int, update: int) -> None:  # noqa: ARG002 - the names are Horovod's
        """The launcher has seen hosts come or go; it tells one worker."""
        self._stop.members_change = True

    def close(self) -> None:
        """Give no more signs of life."""
        self._ended.set()

    def _give_signs(self) -> None:
        count = 0
        while not self._ended.wait(_SECONDS_BETWEEN_SIGNS if count else 0):
            count += 1
            with suppress(OSError):  # one sign lost is none missed: the launcher may only be busy
                self._store.put(_ALIVE, str(launcher.launched_rank()), str(count).encode())

    def take_place(self, waiting: Callable[[float], None]) -> None:
        """Ask for a place among those that go on, which comes when all have asked or ended; it is in the environment then.

        `waiting` is called meanwhile, with the seconds so far. Raises LostWorkerError if none comes; RemovedError.
        """
        answers: list[bytes | OSError | None] = []

        def ask() -> None:
            try:
                answers.append(self._store.get(PLACES, self._key, seconds=None))
            except OSError as error:
                answers.append(error)

        threading.Thread(target=ask, daemon=True).start()
        began = time.monotonic()
        while not answers:
            time.sleep(_NAP)
            seconds = time.monotonic() - began
            if self._stop.reason:
                raise LostWorkerError(f"no new job has come together, and this one was ended ({self._stop.reason})")
            if seconds > float(os.environ.get("HOROVOD_ELASTIC_TIMEOUT", SECONDS_FOR_A_PLACE)):
                raise LostWorkerError(f"no new job has come together in {seconds:.0f} s: a worker may hang")
            waiting(seconds)
        (answer,) = answers
        if not isinstance(answer, bytes):
            raise LostWorkerError("no new job has come together: the launcher is gone, or too few hosts are left for --min-np")
        place = dict(zip(_PLACE, map(int, answer.decode().split(",")), strict=True))
        if place["RANK"] < 0:
            raise RemovedError("this host has left the job, which goes on without it")
        os.environ.update({f"HOROVOD_{name}": str(value) for name, value in place.items()})
        self._stop.members_change = False

    def meet(self, about: str, word: Any) -> list[Any]:
        """`word`, plain values as JSON has them, of all workers that have a place, by rank: they are all there, or have been.

        Once for each `about` and place. Raises LostWorkerError if one of them is dead, or the launcher is gone.
        """
        began = time.monotonic()
        signs: dict[int, tuple[bytes | None, float]] = {}

        def check(missing: Sequence[int]) -> None:
            now = time.monotonic()
            for other in missing:
                sign = self._store.get(_ALIVE, str(other))
                if other not in signs or signs[other][0] != sign:
                    signs[other] = sign, now
                elif now - signs[other][1] > SECONDS_OF_SILENCE:
                    raise LostWorkerError(f"rank {other} has given no sign of life for {SECONDS_OF_SILENCE:.0f} s")
            if self._stop.reason and now - began > _SECONDS_TO_STOP:
                raise LostWorkerError(f"ended before all workers were there ({self._stop.reason})")

        rank, size = launcher.launched_rank(), launcher.launched_size()
        try:
            words = self._store.meet(f"hvd_lm.{about}", rank, size, json.dumps(word).encode(), check)
        except OSError as error:
            raise LostWorkerError(f"the launcher of the elastic job is gone ({error})") from error
        return [json.loads(said) for said in words]
