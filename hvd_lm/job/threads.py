"""How many compute threads a rank may use: the cores that this process may run on, shared by the ranks that run there too."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hvd_lm.job.launcher import is_bound, launched_local_size

_CGROUPS = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Compute threads for a rank. A container's share of time counts like so many cores."""
    threads = cores() / ranks_on_these_cores()
    if quota := cpu_quota():
        threads = min(threads, quota / launched_local_size())
    return max(1, int(threads))


WORTH_A_THREAD = 4_000_000
"""Multiply-adds of a call that occupy a thread for longer than it takes to wake it (`python -m benchmarks busy`, generate)."""


def worth_waking(multiply_adds: int, threads: int) -> int:
    """How many of `threads` a call of so many multiply-adds is done in the shortest time by."""
    return max(1, min(threads, multiply_adds // WORTH_A_THREAD))


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0))


def ranks_on_these_cores() -> int:
    """Ranks of the job that share the cores of this process, itself among them."""
    ranks = launched_local_size()
    if is_bound():
        # What is bound is spread: to cores of their own, or a few to a socket.
        return math.ceil(ranks * cores() / max(cores(), os.cpu_count() or 1))
    return ranks


def cpu_quota(own: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> float | None:
    """Processors' worth of time that the control groups of this process may take together; None if there is no limit."""
    limits = [limit for folder in _folders(own, root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _folders(own: Path, root: Path) -> Iterator[Path]:
    """Of each control group that this process is in, from within: version 2, and the cpu controller of version 1."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "cpu" if controllers else root
            group = top / path.lstrip("/")
            yield group
            yield from (parent for parent in group.parents if parent.is_relative_to(top))


def _limit(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us, period_us = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota_us / period_us if quota_us > 0 else None
    return None


@contextmanager
def brief_spinning() -> Iterator[None]:
    """A library that brings GNU's OpenMP, imported within, lets threads that wait go to sleep after a moment.

    Otherwise they turn on their cores for milliseconds, and beside other processes hold up the thread that they wait for: two
    threads are then slower than one, up to twenty times. The moment is what a small model needs to find them awake
    (`python -m benchmarks busy`). The environment's own settings win.
    """
    if any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "100"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]
