"""Jobs that a fault meets: marked in their environment, timed from the fault on, and looked for when they have ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import launcher
import psutil

MARK = "HVD_LM_FAULT"
FAULTY = Path(__file__).with_name("faulty.py")
SECONDS = 300
"""After which a job is taken to hang, its start on a busy machine included."""


@dataclass(frozen=True)
class Met:
    """A job that has ended, and nothing of it is left."""

    command: str
    code: int
    output: str
    seconds: float
    """From the fault, or from the start if there was none, until its last process had ended."""

    @property
    def lines(self) -> list[str]:
        """What hvd-lm said of its end."""
        return [line for line in self.output.splitlines() if "hvd-lm: " in line and "hvd-lm: warning: " not in line]


def processes(folder: Path) -> list[psutil.Process]:
    """All that have the mark of a job, on any of this machine's hosts."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Job:
    """A job in progress."""

    def __init__(self, command: Sequence[str | Path], folder: Path, **environment: str) -> None:
        """In the new folder `folder`, where its fault is told."""
        folder.mkdir()
        self.folder, self._words = folder, [str(word) for word in command]
        self._began = time.time()
        with (folder / "log").open("wb") as told:
            self._process = subprocess.Popen(
                self._words,
                env=launcher.with_scripts(**environment, **{MARK: str(folder)}),
                stdout=told,
                stderr=told,
                start_new_session=True,
            )

    def output(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def fault(self) -> tuple[float, int] | None:
        """When it was, and in which process."""
        path = self.folder / "at"
        if not path.exists():
            return None
        when, pid = path.read_text().split()
        return float(when), int(pid)

    def await_fault(self) -> int:
        """The process that has met it."""
        self._await(lambda: self.fault() is not None or self._process.poll() is not None)
        fault = self.fault()
        assert fault, f"the job has ended before its fault:\n{self.output()}"
        return fault[1]

    def go(self) -> None:
        """It waits no longer."""
        (self.folder / "go").touch()

    def ended(self) -> Met:
        """When all of it has."""
        self._await(lambda: self._process.poll() is not None)
        self._await(lambda: not processes(self.folder), seconds=60)
        began = fault[0] if (fault := self.fault()) else self._began
        return Met(shlex.join(self._words), self._process.wait(), self.output(), time.time() - began)

    def _await(self, is_so: Callable[[], bool], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            left = [shlex.join(process.cmdline()) for process in processes(self.folder)] if time.monotonic() > deadline else []
            assert time.monotonic() < deadline, "\n".join(["these do not end:", *left, self.output()])
            time.sleep(0.05)

    def kill(self) -> None:
        """What is left of it."""
        for process in processes(self.folder):
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def started(command: Sequence[str | Path], folder: Path, **environment: str) -> Iterator[Job]:
    job = Job(command, folder, **environment)
    try:
        yield job
    finally:
        job.kill()


def faulty(what: str, rank: int, moment: str) -> list[str]:
    """`hvd-lm` that meets it."""
    return [sys.executable, str(FAULTY), what, str(rank), moment]
