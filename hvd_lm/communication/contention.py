"""What compute and communication take of each other while both are under way: cores, and memory, that they share.

Where there is a core for everything, neither takes anything. Where ranks compute on all cores, what Horovod and the network do for
a message they do in the ranks' stead, and a message waits for a thread that has no core. Gradients are also many and fill the
caches, where an operation that is timed by itself finds its numbers: so they are timed as they are, all of them, alone too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hvd_lm.adapters.job import Job
from hvd_lm.adapters.probe import Action
from hvd_lm.communication.clock import of_slowest
from hvd_lm.communication.fit import middle_mean

_TIMES = 2.0
"""The messages take no more than so many times as long as the compute, or they are made smaller."""
_MOST_TIMES = 10.0
"""Messages that cannot be made so small that they take no more than so many times as long are all latency."""
_MOST_VALUES = 2**26
"""Of all messages."""
_FEWEST, _MOST = 5, 15
"""Repeats."""
_LEAST = 0.05
"""Rate; what is below was no measurement."""


class Rates(NamedTuple):
    """How fast each goes: compute of how fast it goes alone, communication of what was fitted to single operations."""

    compute: float = 1.0
    """Beside communication."""
    alone: float = 1.0
    """Communication, beside nothing."""
    beside: float = 1.0
    """Communication, beside compute."""


@dataclass(frozen=True)
class Contention:
    """Seconds of a micro-batch's forward and backward and of all-reduces, of as many as a window has gradients."""

    number_format: str
    """Of the messages: float32 or float16."""
    messages: tuple[int, ...]
    """Values of each."""
    fitted: float
    """That the messages take by the fits of single operations."""
    compute: float
    communication: float
    compute_beside: float
    """From when both begin together until compute is done."""
    communication_beside: float
    """Until the messages are."""

    def rates(self) -> Rates:
        """While both are under way: the one that ends last goes on alone."""
        both = min(self.compute_beside, self.communication_beside)
        computed = self.compute - (self.compute_beside - both)
        sent = 1 - (self.communication_beside - both) / self.communication
        # Messages that were made smaller may pass in a burst that a link allows before it limits.
        alone = _bounded(self.fitted / self.communication)
        return Rates(_bounded(computed / both), alone, min(alone, _bounded(sent * self.fitted / both)))


def _bounded(rate: float) -> float:
    return min(1.0, max(_LEAST, rate))


def time_contention(
    job: Job,
    compute: Callable[[], None],
    messages: Sequence[float],
    number_format: str,
    fitted: Callable[[Sequence[float]], float],
    seconds: float,
) -> Contention | None:
    """Of `compute`, which all ranks call alike and which sends nothing, and all-reduces of so many values each, of which
    `fitted` says what they take; in about so many `seconds`. None on a link that is so long that messages hardly have work for a
    core. Collective."""
    probe, alone = job.probe_class(job), float(of_slowest(job, min(_seconds(job, compute) for _ in range(2)))[0])
    less = min(1.0, _TIMES * alone / fitted(messages), _MOST_VALUES / sum(messages))
    values = tuple(max(1, int(less * count)) for count in messages)
    if fitted(values) > _MOST_TIMES * alone:
        return None
    send = probe.sums([np.zeros(count, number_format) for count in values], f"measured.window.{number_format}")
    send()
    takes = float(of_slowest(job, min(_seconds(job, send) for _ in range(2)))[0])
    repeats = int(np.clip(seconds / (2 * (alone + takes)), _FEWEST, _MOST))
    # In turn, as a machine has its quick and its slow minutes.
    timed = [(_seconds(job, compute), _seconds(job, send), *_together(job, compute, send)) for _ in range(repeats)]
    of_all = job.gather(middle_mean(np.array(timed)), "all").mean(axis=0)
    return Contention(number_format, values, fitted(values), *of_all.tolist())


def _seconds(job: Job, act: Callable[[], object]) -> float:
    """All ranks begin together."""
    job.barrier()
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _together(job: Job, compute: Callable[[], None], send: Action) -> tuple[float, float]:
    """Seconds of each, begun together."""
    ends: list[float] = []

    def sending() -> None:
        send()
        ends.append(time.perf_counter())

    thread = threading.Thread(target=sending, daemon=True)
    job.barrier()
    began = time.perf_counter()
    thread.start()
    compute()
    computed = time.perf_counter()
    thread.join()
    # An error of Horovod's comes again with the next collective call.
    return computed - began, (ends[0] if ends else computed) - began
