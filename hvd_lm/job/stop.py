"""A job that is asked to stop, by a signal to any of its ranks or by the clock: it ends its step, and nothing is lost.

Schedulers warn with SIGTERM or SIGUSR1 before they kill, a person with Ctrl-C (SIGINT). The rank that hears of it tells the others
beside the loss of the next step (`Job.flags`), so that all stop after the same one.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
WARNING = signal.SIGUSR1
"""The one that schedulers send and launchers do not: it may come while a run is set up, which the other two end at once."""


class Stop:
    """Whether this rank is asked to stop, and why."""

    def __init__(self, hours: float | None = None) -> None:
        """It will be in so many hours."""
        self._reason: str | None = None
        self._hours = hours or math.inf
        self._deadline = time.monotonic() + 3600 * self._hours
        self.members_change = False
        """Whether the job is to be left because workers of an elastic one come or go."""

    @property
    def reason(self) -> str | None:
        """A few words for a message; None if it is not."""
        if self._reason is None and time.monotonic() >= self._deadline:
            self._reason = f"--max-hours {self._hours:g}"
        return self._reason

    def ask(self, reason: str) -> None:
        """The first reason holds."""
        self._reason = self._reason or reason

    @contextlib.contextmanager
    def signals_heard(self, *signals: signal.Signals) -> Iterator[None]:
        """Within, `signals`, which would end this process, ask it to stop; a second SIGINT ends it at once.

        Signals that it was started to ignore, as by nohup, stay ignored. Elsewhere than in the main thread Python cannot hear any.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._hear) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # Python would not come to a handler while it waits for another rank
        self.ask(signal.Signals(number).name)


def leave_by_own_code() -> None:
    """From here on a launcher that ends the ranks which it finds running does not change how this one ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
