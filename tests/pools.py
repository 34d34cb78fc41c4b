"""Started ranks, for tests that do not judge the start: a pool takes seconds to start, its next order a moment.

A pool is a job of the real horovodrun whose ranks run `tests/ranks/pool.py`: started when a test first asks for it, one for each
framework, number of ranks and controller. What tests environment, exit codes, or the memory or time of a fresh process takes
`launcher` instead.
"""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import launcher
from launcher import Ended

_BYTES_OF_A_RANK = 700e6
"""TensorFlow's; PyTorch's takes half of that."""
MOST_RANKS = round(min(16, max(9, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 / _BYTES_OF_A_RANK)))
"""In all pools of a test process together, of which there may be two: what was used longest ago ends first."""
MOST_POLLING = 4
"""Of them over MPI, where ranks that wait still take a fifth of a core each."""
SECONDS_TO_START = 120
SECONDS_TO_END = 30
SECONDS_FOR_THE_OTHERS = 2
"""How long the other ranks have to come to their end, too, once one has failed."""


class PoolError(AssertionError):
    """A body that failed, died or hung; says what the ranks printed. The next order goes to a new pool."""


@dataclass(frozen=True)
class Key:
    """What makes ranks differ from others."""

    framework: str
    ranks: int
    controller: str


class Pool:
    """Ranks that wait for orders."""

    def __init__(self, key: Key) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hvd_lm-pool-")
        self._pids: dict[int, int] = {}
        self._connections: dict[int, Connection] = {}
        command = launcher.of_ranks(
            key.ranks, sys.executable, launcher.BODIES / "pool.py", self._folder.name, key.framework, controller=key.controller
        )
        with socket.socket(socket.AF_UNIX) as listener, self._path("launch.txt").open("wb") as printed:
            listener.bind(str(self._path("orders")))
            listener.listen(key.ranks)
            self._process = subprocess.Popen(
                command, env=launcher.with_scripts(), stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                self._await_ranks(listener, key.ranks)
            except BaseException:
                self.kill()
                raise

    def _await_ranks(self, listener: socket.socket, ranks: int) -> None:
        listener.settimeout(1)
        deadline = time.monotonic() + SECONDS_TO_START
        while len(self._connections) < ranks:
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise self._error(f"{ranks} rank(s) do not start") from None
                continue
            accepted.setblocking(True)
            connection = Connection(accepted.detach())
            rank, pid = connection.recv()
            self._connections[rank], self._pids[rank] = connection, pid

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def run(self, body: str, arguments: Sequence[str], timeout: float) -> tuple[list[Any], str]:
        """What each rank returned, and all that they printed, rank by rank.

        Raises PoolError unless all come to their end in `timeout` seconds. After an error the ranks are gone.
        """
        try:
            return self._run(body, arguments, timeout)
        except BaseException:
            self.kill()
            raise

    def _run(self, body: str, arguments: Sequence[str], timeout: float) -> tuple[list[Any], str]:
        for connection in self._connections.values():
            connection.send((body, arguments, os.getcwd()))
        results: dict[int, Any] = {}
        failures: list[str] = []
        pending = {connection: rank for rank, connection in self._connections.items()}
        deadline = time.monotonic() + timeout
        while pending and (ready := wait(list(pending), max(0.0, deadline - time.monotonic()))):
            for connection in ready:
                rank = pending.pop(connection)
                try:
                    done, results[rank] = connection.recv()
                    failure = "" if done else f"rank {rank} failed"
                except (EOFError, ConnectionError):
                    failure = f"rank {rank} died"
                if failure:
                    failures.append(failure)
                    deadline = min(deadline, time.monotonic() + SECONDS_FOR_THE_OTHERS)
        if pending and not failures:
            failures.append(f"after {timeout:g} seconds rank(s) {sorted(pending.values())} had not come to an end")
            for rank in pending.values():
                os.kill(self._pids[rank], signal.SIGUSR1)  # tells where it is
            time.sleep(1)
        if failures:
            raise self._error(f"`{shlex.join((body, *arguments))}`: {', '.join(failures)}")
        return [results[rank] for rank in sorted(results)], "".join(map(self._printed, sorted(results)))

    def _printed(self, rank: int) -> str:
        path = self._path(f"{rank}.txt")
        return path.read_text(errors="replace") if path.exists() else ""

    def _error(self, reason: str) -> PoolError:
        texts = {"launcher": self._path("launch.txt").read_text(errors="replace")}
        texts |= {f"rank {rank}": self._printed(rank) for rank in sorted(self._connections)}
        return PoolError("\n".join([reason, *(f"--- {who} ---\n{text}" for who, text in texts.items() if text)]))

    def kill(self) -> None:
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.end(seconds=5)

    def end(self, seconds: float = SECONDS_TO_END) -> None:
        """Let the ranks go; kill what is still there after `seconds`."""
        for connection in self._connections.values():
            connection.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._folder.cleanup()


_pools: dict[Key, Pool] = {}
"""What is alive, the one that was used last at the end."""


def _leave_room(among: Iterable[Key], ranks: int, most: int) -> None:
    """End those of `among` that were used longest ago, until there are `most` ranks with `ranks` new ones."""
    left = list(among)
    while left and sum(other.ranks for other in left) + ranks > most:
        _pools.pop(left.pop(0)).end()


def _run(key: Key, body: str, arguments: Sequence[str | Path], timeout: float) -> tuple[list[Any], str]:
    pool = _pools.pop(key, None)
    _leave_room(_pools, key.ranks, MOST_RANKS)
    if key.controller == "mpi":
        _leave_room([other for other in _pools if other.controller == "mpi"], key.ranks, MOST_POLLING)
    pool = pool or Pool(key)
    answer = pool.run(body, list(map(str, arguments)), timeout)
    _pools[key] = pool
    return answer


def body(
    name: str, ranks: int, framework: str, *arguments: str | Path, controller: str = "gloo", timeout: float = 240
) -> list[Any]:
    """``main(framework, *arguments)`` of tests/ranks/`name`.py on `ranks` ranks; what each returned, in the order of the ranks."""
    results, _ = _run(Key(framework, ranks, controller), name, (framework, *arguments), timeout)
    return results


def hvd_lm(
    ranks: int,
    command: str,
    *arguments: str | Path,
    framework: str | None = None,
    controller: str = "gloo",
    timeout: float = 240,
) -> Ended:
    """What `launcher.hvd_lm` does, in started ranks of `framework`, or else of that of --framework; errors fail the test."""
    words = ["command", command, *map(str, arguments)]
    framework = framework or words[words.index("--framework") + 1]
    results, output = _run(Key(framework, ranks, controller), words[0], words[1:], timeout)
    return Ended(shlex.join(("hvd-lm", *words[1:])), max(results), output)


@atexit.register
def end() -> None:
    """End all pools: with the tests, whether they passed, failed or were interrupted."""
    while _pools:
        _pools.popitem()[1].end()
