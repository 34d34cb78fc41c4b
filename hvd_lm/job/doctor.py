"""``hvd-lm doctor``: what is installed, what Horovod can do here, and one tiny all-reduce for each way of launching.

Every line is green or says what to do. Exit code 0 if training can run, 2 if not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from packaging.requirements import Requirement

from hvd_lm.adapters import adapter_class
from hvd_lm.adapters.job import Job
from hvd_lm.config import FRAMEWORKS
from hvd_lm.errors import HvdLmError
from hvd_lm.job import point_to_point
from hvd_lm.job.build_horovod import installed_frameworks
from hvd_lm.job.launcher import launched_rank
from hvd_lm.job.threads import cores

Mark = Literal["ok", "note", "FAIL"]
_COLOURS = {"ok": "\033[32m", "note": "\033[33m", "FAIL": "\033[31m"}
_PROBE_SECONDS = 120
_MESSAGES = "messages: "
_BOTH_CAME = "MPI gives MPI_THREAD_MULTIPLE, and mpi4py's messages pass beside Horovod's"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    mark: Mark
    subject: str
    message: str

    def __str__(self) -> str:
        mark = f"[{self.mark:^4}]"
        if sys.stdout.isatty():
            mark = f"{_COLOURS[self.mark]}{mark}\033[0m"
        return f"{mark} {self.subject}: {self.message}"


def main(argv: Sequence[str]) -> int:
    """Print the findings; 0 if training can run."""
    parser = argparse.ArgumentParser(
        prog="hvd-lm doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all-reduce", choices=FRAMEWORKS, help="be one rank of the all-reduce that the check launches")
    options = parser.parse_args(list(argv))
    if options.all_reduce:
        return all_reduce(options.all_reduce)
    failed = False
    for finding in findings():
        print(finding, flush=True)
        failed = failed or finding.mark == "FAIL"
    print("something is missing: see FAIL above" if failed else "hvd-lm train can run here")
    return 2 if failed else 0


def findings() -> Iterator[Finding]:
    """Yield the findings one by one; the launches take seconds each."""
    yield Finding("ok", "machine", f"Python {platform.python_version()}, {cores()} core(s), {platform.platform()}")
    frameworks = installed_frameworks()
    for name, tested in tested_versions().items():
        yield framework_finding(name, frameworks.get(name), tested)
    if not frameworks:
        yield Finding("FAIL", "frameworks", "none is installed: pip install 'hvd_lm[torch]' or 'hvd_lm[tensorflow]'")
        return
    working = []
    for name in frameworks:
        finding = horovod_finding(name)
        yield finding
        if finding.mark == "ok":
            working.append(name)
    if any("mpi" in controllers(name) for name in working):
        yield mpi4py_finding()
    for name in working:
        for controller in controllers(name):
            yield from launch_findings(name, controller)


def tested_versions() -> dict[str, str]:
    """Framework -> the version of the tested pair, as the package's extras name it."""
    tested: dict[str, str] = {}
    for line in importlib.metadata.requires("hvd_lm") or []:
        requirement = Requirement(line)
        for name in FRAMEWORKS:
            if requirement.marker and requirement.marker.evaluate({"extra": name}) and str(requirement.specifier):
                tested[name] = str(requirement.specifier).removeprefix("==")
    return tested


def framework_finding(name: str, version: str | None, tested: str) -> Finding:
    """Whether framework `name` is installed, in the tested version."""
    if version is None:
        return Finding("note", name, f"not installed: pip install 'hvd_lm[{name}]', then python -m hvd_lm.job.build_horovod")
    if version.split("+")[0] != tested:
        return Finding("note", name, f"{version}, while {tested} is tested")
    return Finding("ok", name, version)


def horovod_finding(framework: str) -> Finding:
    """Whether Horovod loads for `framework`, and with which controllers and operations."""
    subject = f"Horovod for {framework}"
    try:
        hvd = adapter_class(framework).job_class.horovod
    except HvdLmError as error:
        return Finding("FAIL", subject, str(error))
    names = ("gloo", "mpi", "nccl", "ccl", "rocm", "cuda")
    built = [name for name in names if getattr(hvd, f"{name}_built")()]
    version = importlib.metadata.version("horovod")
    built_names = ", ".join(name.upper() if name != "gloo" else "Gloo" for name in built)
    return Finding("ok", subject, f"{version} with {built_names}")


def controllers(framework: str) -> list[str]:
    """The ways to launch that Horovod was built for."""
    hvd = adapter_class(framework).job_class.horovod
    return [name for name in ("gloo", "mpi") if getattr(hvd, f"{name}_built")()]


def mpi4py_finding() -> Finding:
    """Whether mpi4py is there, and takes the MPI that Horovod, loaded before, is built with."""
    of_horovod = point_to_point.loaded_libraries()
    try:
        mpi = point_to_point.load_mpi()
    except ImportError as error:
        return Finding("note", "mpi4py", f"{error}. Without it --split layers goes by Horovod's all-to-all over MPI, too")
    version, library = importlib.metadata.version("mpi4py"), point_to_point.library(mpi)
    if others := point_to_point.loaded_libraries() - of_horovod:
        wrong = f"{version} takes {library} from {', '.join(others)}, while Horovod is built with {', '.join(of_horovod)}"
        return Finding("note", "mpi4py", f"{wrong}: export MPI4PY_LIBMPI with the path of Horovod's")
    return Finding("ok", "mpi4py", f"{version} with {library}, as Horovod")


def launch_findings(framework: str, controller: str) -> Iterator[Finding]:
    """One all-reduce on 2 ranks, launched as a user would; over MPI, with threads and mpi4py, messages beside it."""
    subject = f"all-reduce, {framework} over {controller}"
    scripts = sysconfig.get_path("scripts")
    search = os.pathsep.join((scripts, os.environ.get("PATH", "")))
    horovodrun = shutil.which("horovodrun", path=search)
    if horovodrun is None:
        yield Finding("FAIL", subject, "horovodrun is not found: python -m hvd_lm.job.build_horovod")
        return
    if controller == "mpi":
        if shutil.which("mpirun", path=search) is None:
            yield Finding("note", subject, "mpirun is not on PATH: install OpenMPI, or launch with horovodrun --gloo")
            return
        if os.geteuid() == 0 and not os.environ.get("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
            advice = "OpenMPI refuses root until you export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
            yield Finding("note", subject, advice)
            return
    command = [horovodrun, "-np", "2", f"--{controller}", sys.executable, "-m", "hvd_lm", "doctor", "--all-reduce", framework]
    try:
        done = subprocess.run(command, env={**os.environ, "PATH": search}, capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        yield Finding("FAIL", subject, f"no answer within {_PROBE_SECONDS} s: try {' '.join(command)}")
        return
    if done.returncode or "all-reduce is right" not in done.stdout:
        lines = (done.stderr + done.stdout).strip().splitlines()
        yield Finding("FAIL", subject, f"{lines[-1] if lines else 'no output'}; try {' '.join(command)}")
        return
    yield Finding("ok", subject, "right on 2 ranks")
    if controller == "mpi":
        _, found, said = done.stdout.partition(_MESSAGES)
        message = said.splitlines()[0] if found else "not tried"
        yield Finding("ok" if message == _BOTH_CAME else "note", f"point to point, {framework} over mpi", message)


def all_reduce(framework: str) -> int:
    """One rank's part: the sum of rank + 1 over all ranks, and over MPI a message to the next rank."""
    job = adapter_class(framework).job_class()
    rank, size = job.topology.rank, job.topology.size
    total = job.sum(np.array([rank + 1.0]))[0]
    right = bool(total == size * (size + 1) / 2)
    messages = pass_on(job) if job.horovod.mpi_enabled() and size > 1 else ""
    if launched_rank() == 0:
        print("all-reduce is right" if right else f"all-reduce is wrong: {total}")
        print(f"{_MESSAGES}{messages}" if messages else "", end="")
    return 0 if right else 1


def pass_on(job: Job) -> str:
    """What became of a message from each rank to the next, on all ranks alike."""
    obstacles = [obstacle for obstacle in job.tell(point_to_point.obstacle(job.horovod)) if obstacle]
    if obstacles:
        return str(obstacles[0])
    rank, size = job.topology.rank, job.topology.size
    everyone, received = point_to_point.communicator(), np.zeros(1)
    point_to_point.Link(everyone, (rank + 1) % size, _PROBE_SECONDS).send(np.array([rank + 1.0]), "activations")
    point_to_point.Link(everyone, (rank - 1) % size, _PROBE_SECONDS).receive(received, "activations")
    right = received[0] == (rank - 1) % size + 1
    return _BOTH_CAME if all(job.tell(bool(right))) else "a message came as another one"
