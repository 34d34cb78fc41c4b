"""Runs a command as the ranks of a job on a network, the way its users start it; nothing of it outlives the call."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from benchmarks.links import LOOPBACK, Network, free_port

Launcher = Literal["processes", "gloo", "mpi", "alone", "copies"]
"""processes: one each, told by RANK, WORLD_SIZE, MASTER_ADDR and TF_CONFIG. gloo, mpi: horovodrun. alone: one process.
copies: as many single processes as there are ranks, at the same time, that know nothing of each other."""

_ROOT = Path(__file__).parent.parent
_POLL = 0.1
_TAIL = 25


class RunError(Exception):
    """A job failed or hung; the message has its last lines."""


@dataclass(frozen=True)
class Job:
    """What to run, and as what."""

    command: tuple[str, ...]
    launcher: Launcher
    ranks: int
    threads: int
    servers: int = 0
    """Processes besides, after the last rank."""


def run(job: Job, network: Network, log: Path, *, timeout: float, environment: dict[str, str] | None = None) -> None:
    """Run `job` to its end; its command and output go to `log`. Raises RunError if a process fails, or after `timeout` seconds."""
    with contextlib.ExitStack() as stack:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = stack.enter_context(log.open("w", encoding="utf-8"))
        print(shlex.join(next(commands(job, network))[0]), file=output, flush=True)
        processes = [
            stack.enter_context(_process(command, {**base_environment(job, network), **(environment or {}), **own}, output))
            for command, own in commands(job, network)
        ]
        deadline = time.monotonic() + timeout
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes) or time.monotonic() > deadline:
                break
            time.sleep(_POLL)
        codes = [process.poll() for process in processes]
    if any(code != 0 for code in codes):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        what = f"did not end within {timeout:.0f} s" if None in codes and not any(codes) else f"ended with {codes}"
        raise RunError(f"{what}; its output is in {log}, at last:\n" + "\n".join(lines[-_TAIL:]))


@contextlib.contextmanager
def _process(command: Sequence[str], environment: dict[str, str], output: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def base_environment(job: Job, network: Network) -> dict[str, str]:
    """The environment of all ranks alike."""
    front = [str(network.ssh_folder)] if network.ssh_folder else []
    path = os.pathsep.join([*front, sysconfig.get_path("scripts"), os.environ["PATH"]])
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1")}
    # As torchrun does for its ranks.
    return {**os.environ, **quiet, "PATH": path, "OMP_NUM_THREADS": str(job.threads)}


def commands(job: Job, network: Network) -> Iterator[tuple[list[str], dict[str, str]]]:
    """What to start, each with its own part of the environment."""
    if job.launcher in ("gloo", "mpi"):
        yield network.hosts[0].enter([*horovodrun(job.launcher, job.ranks, network), *job.command]), {}
        return
    size = 1 if job.launcher == "alone" else job.ranks
    ports = [free_port() for _ in range(size + 1)]
    for rank in range(size + job.servers):
        own = rank_environment(rank, size, job.servers, network, ports) if job.launcher == "processes" else {}
        command = [word.replace("{rank}", str(rank)) for word in job.command]
        yield network.host(rank, size).enter(command), own


def horovodrun(controller: str, ranks: int, network: Network) -> list[str]:
    """As README.md and jobs/ start it."""
    words = ["horovodrun", "-np", str(ranks), f"--{controller}"]
    if network.rate != LOOPBACK:
        slots = ranks // len(network.hosts)
        words += ["-H", ",".join(f"{host.name}:{slots}" for host in network.hosts), "--network-interfaces", network.interface]
    if controller == "mpi":
        words.append("--mpi-args=--oversubscribe --mca mpi_yield_when_idle 1")
    return words


def rank_environment(rank: int, size: int, servers: int, network: Network, ports: Sequence[int]) -> dict[str, str]:
    """What tells a process of torch.distributed, torch RPC or tf.distribute who it is."""
    workers = [f"{network.host(index, size).address}:{ports[index]}" for index in range(size)]
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size + servers),
        "MASTER_ADDR": network.hosts[0].address,
        "MASTER_PORT": str(ports[-1]),
        "GLOO_SOCKET_IFNAME": network.interface,
        "TP_SOCKET_IFNAME": network.interface,
        "TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}),
    }


def python(module: str, *arguments: str | int | Path) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments))
