"""Starts jobs the way a user does: hvd-lm alone, or under the real horovodrun. `pools` has ranks that are started already."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

BODIES = Path(__file__).with_name("ranks")
SCRIPTS = sysconfig.get_path("scripts")
SMALL = ["--vocabulary-size", "1000", "--embedding-size", "24", "--hidden-size", "32", "--sequence-length", "16"]
"""A model and sequences that train in a moment; the text is the embedded corpus unless --data says otherwise."""
TINY = ["--vocabulary-size", "97", "--embedding-size", "12", "--sequence-length", "8", "--backward-passes-per-step", "2"]
"""The same for some steps on any grid: an odd vocabulary. Without a --hidden-size."""


@dataclass(frozen=True)
class Ended:
    """A finished job."""

    command: str
    code: int
    output: str
    """Standard output and error of all ranks and of the launcher."""

    def expect_success(self) -> Ended:
        tail = "\n".join(self.output.splitlines()[-50:])
        assert self.code == 0, f"`{self.command}` ended with {self.code}:\n{tail}"
        return self


def with_scripts(**environment: str) -> dict[str, str]:
    """This process's environment with `environment`, and the scripts of its Python on the path."""
    return {**os.environ, "PATH": os.pathsep.join((SCRIPTS, os.environ["PATH"])), **environment}


def run(*command: str | Path, timeout: float = 240, **environment: str) -> Ended:
    """Run `command` to its end; raises subprocess.TimeoutExpired if it hangs."""
    words = [str(word) for word in command]
    with subprocess.Popen(
        words,
        env=with_scripts(**environment),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise
    return Ended(shlex.join(words), process.returncode, output)


def of_ranks(ranks: int, *command: str | Path, controller: str = "gloo") -> list[str]:
    """The command that runs `command` as `ranks` processes of a horovodrun job; alone if `ranks` is 1."""
    words = [str(word) for word in command]
    if ranks == 1:
        return words
    launch = ["horovodrun", "-np", str(ranks), "-H", f"localhost:{ranks}", f"--{controller}"]
    if controller == "mpi":
        launch.append("--mpi-args=--oversubscribe --mca mpi_yield_when_idle 1")
    return launch + words


def job(ranks: int, *command: str | Path, controller: str = "gloo", timeout: float = 240, **environment: str) -> Ended:
    """Run `command` as `ranks` processes to its end."""
    return run(*of_ranks(ranks, *command, controller=controller), timeout=timeout, **environment)


def hvd_lm(ranks: int, *arguments: str | Path, controller: str = "gloo", timeout: float = 240, **environment: str) -> Ended:
    return job(ranks, "hvd-lm", *arguments, controller=controller, timeout=timeout, **environment)


def body(name: str, ranks: int, *arguments: str | Path, controller: str = "gloo", **environment: str) -> list[Any]:
    """Run the script tests/ranks/`name`.py on `ranks` processes; what each rank returned, in the order of the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        environment["HVD_LM_TEST_RESULTS"] = folder
        job(ranks, sys.executable, BODIES / f"{name}.py", *arguments, controller=controller, **environment).expect_success()
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


ENDLESS = ["--steps", "100000", "--checkpoint-every", "100000", "--validation-every", "100000"]
"""So many steps that a run cannot end before it is ended, and no checkpoint meanwhile."""


@dataclass(frozen=True)
class Training:
    """A run in progress."""

    job: subprocess.Popen[bytes]
    ranks: list[psutil.Process]
    """In any order."""
    log: Path
    """Standard output and error of the job."""

    def ended(self, timeout: float = 60) -> Ended:
        """The job, once it has ended, and its ranks with it."""
        code = self.job.wait(timeout)
        _, alive = psutil.wait_procs(self.ranks, timeout=10)
        assert not alive, "ranks outlive their job"
        return Ended(shlex.join(map(str, self.job.args)), code, self.log.read_text())


@contextlib.contextmanager
def training(ranks: int, out: Path, *flags: str | Path, after_step: int, controller: str = "gloo") -> Iterator[Training]:
    """An endless run into `out` that has done `after_step` steps; nothing of it is left at the end."""
    command = of_ranks(ranks, "hvd-lm", "train", "--out", out, *flags, *ENDLESS, controller=controller)
    log, rows = out.with_suffix(".log"), out / "metrics.jsonl"
    with (
        log.open("wb") as told,
        subprocess.Popen(command, env=with_scripts(), stdout=told, stderr=told, start_new_session=True) as job,
    ):
        started = psutil.Process(job.pid)
        found = []
        try:
            deadline = time.monotonic() + 120
            while not rows.exists() or rows.read_text().count("\n") < after_step:
                assert job.poll() is None, f"the job has ended:\n{log.read_text()}"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            processes = [started, *started.children(recursive=True)]
            found = [process for process in processes if any(word.endswith("/hvd-lm") for word in process.cmdline()[:2])]
            assert len(found) == ranks
            yield Training(job, found, log)
        finally:
            for process in (*found, started):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in metrics(out)]
