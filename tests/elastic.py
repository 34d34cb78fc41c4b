"""Elastic jobs of the real horovodrun on this machine, which has several names: each is a host of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import launcher
import psutil

HOSTS = list(
    dict.fromkeys(
        [
            "localhost",
            *(address.address for of in psutil.net_if_addrs().values() for address in of if address.family == socket.AF_INET),
            socket.gethostname(),
        ]
    )
)
"""Names that horovodrun takes for this machine, and starts workers on without ssh."""
COOLDOWN = ["--blacklist-cooldown-range", "1", "2"]
"""Seconds until the host of a lost worker is taken again."""


@dataclass(frozen=True)
class Job:
    """One in progress."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def output(self) -> str:
        """Standard output and error of launcher and workers, so far."""
        return (self.folder / "log").read_text(errors="replace")

    def offer(self, *hosts: str) -> None:
        """What the discovery script finds from now on: a slot on each."""
        write_hosts(self.folder, hosts)

    @property
    def workers(self) -> list[psutil.Process]:
        """Those that are alive, oldest first."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if str(launcher.BODIES / "reads.py") in process.cmdline()[1:2]:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    @property
    def step(self) -> int:
        """The last one in metrics.jsonl."""
        path = self.out / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def has_made(self, step: int) -> bool:
        return self.step >= step

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> float:
        """Waits for it; how long it took."""
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, f"the job has ended:\n{self.output}"
            assert time.monotonic() < began + seconds, f"not in {seconds} s:\n{self.output}"
            time.sleep(0.02)
        return time.monotonic() - began

    def until_ranks(self, ranks: int, seconds: float = 60) -> float:
        """Waits until so many have made a step together; how long it took."""
        began = self.step
        return self.until(lambda: ranks_of_last_step(self) == ranks and self.step > began, seconds)

    def ended(self, seconds: float = 60) -> launcher.Ended:
        """The job, once it has ended."""
        code = self.process.wait(seconds)
        return launcher.Ended("horovodrun", code, self.output)


def write_hosts(folder: Path, hosts: Sequence[str]) -> None:
    new = folder / "hosts.new"
    new.write_text("".join(f"{host}:1\n" for host in hosts))
    new.replace(folder / "hosts")


@contextlib.contextmanager
def job(
    folder: Path,
    hosts: Sequence[str],
    *flags: str | Path,
    least: int = 1,
    launch: Sequence[str] = (),
    network: str = "lo",
    where: Callable[[Sequence[str]], list[str]] = list,
) -> Iterator[Job]:
    """``hvd-lm train --elastic`` on a worker for each of `hosts`, into folder/run; nothing of it is left at the end.

    `where` makes the launcher's command one on another host.
    """
    (folder / "reads").mkdir(parents=True)
    write_hosts(folder, hosts)
    discovery = folder / "discover.sh"
    discovery.write_text(f"#!/bin/sh\ncat '{folder / 'hosts'}'\n")
    discovery.chmod(0o755)
    command = [
        *("horovodrun", "--gloo", "--network-interface", network, "-np", str(len(hosts)), "--min-np", str(least)),
        *("--max-np", str(len(HOSTS)), "--host-discovery-script", str(discovery), *launch),
        *(sys.executable, str(launcher.BODIES / "reads.py"), str(folder / "reads"), "--elastic", "--out", str(folder / "run")),
        *map(str, flags),
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(where(command), env=launcher.with_scripts(), stdout=log, stderr=log, start_new_session=True) as process,
    ):
        started = Job(process, folder)
        try:
            yield started
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()


# --- what was read ---------------------------------------------------------------------------------------


def notes(job: Job) -> list[dict[str, Any]]:
    """Of all steps of all workers; of a step that was tried again, of the last time: what came of it is what counts."""
    found = []
    for path in (job.folder / "reads").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a worker was killed as it wrote
                found.append(json.loads(line))
    last = {step: max(note["leg"] for note in found if note["step"] == step) for step in {note["step"] for note in found}}
    return [note for note in found if note["leg"] == last[note["step"]]]


def ranks_of_last_step(job: Job) -> int:
    steps = [note["step"] for note in notes(job)]
    return steps.count(job.step)


def assert_each_token_once(job: Job, tokens: int, epochs: int) -> None:
    """In each epoch each of the `tokens` targets of the text was read, and none twice, by the steps that count."""
    made = notes(job)
    for epoch in range(epochs):
        read = sorted(tuple(segment) for note in made if note["epoch"] == epoch for segment in note["read"])
        assert read[0][0] == 0
        assert read[-1][1] == tokens
        assert all(before[1] == after[0] for before, after in pairwise(read)), f"epoch {epoch}"
