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
from hvd_lm.config import FRAMEWORKS
from hvd_lm.errors import HvdLmError
from hvd_lm.job.build_horovod import installed_frameworks
from hvd_lm.job.launcher import launched_rank
from hvd_lm.job.threads import cores

Mark = Literal["ok", "note", "FAIL"]
_COLOURS = {"ok": "\033[32m", "note": "\033[33m", "FAIL": "\033[31m"}
_PROBE_SECONDS = 120


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
    for name in working:
        for controller in controllers(name):
            yield launch_finding(name, controller)


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


def launch_finding(framework: str, controller: str) -> Finding:
    """One all-reduce on 2 ranks, launched as a user would."""
    subject = f"all-reduce, {framework} over {controller}"
    scripts = sysconfig.get_path("scripts")
    search = os.pathsep.join((scripts, os.environ.get("PATH", "")))
    horovodrun = shutil.which("horovodrun", path=search)
    if horovodrun is None:
        return Finding("FAIL", subject, "horovodrun is not found: python -m hvd_lm.job.build_horovod")
    if controller == "mpi":
        if shutil.which("mpirun", path=search) is None:
            return Finding("note", subject, "mpirun is not on PATH: install OpenMPI, or launch with horovodrun --gloo")
        if os.geteuid() == 0 and not os.environ.get("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
            advice = "OpenMPI refuses root until you export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
            return Finding("note", subject, advice)
    command = [horovodrun, "-np", "2", f"--{controller}", sys.executable, "-m", "hvd_lm", "doctor", "--all-reduce", framework]
    try:
        done = subprocess.run(command, env={**os.environ, "PATH": search}, capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding("FAIL", subject, f"no answer within {_PROBE_SECONDS} s: try {' '.join(command)}")
    if done.returncode or "all-reduce is right" not in done.stdout:
        lines = (done.stderr + done.stdout).strip().splitlines()
        return Finding("FAIL", subject, f"{lines[-1] if lines else 'no output'}; try {' '.join(command)}")
    return Finding("ok", subject, "right on 2 ranks")


def all_reduce(framework: str) -> int:
    """One rank's part: the sum of rank + 1 over all ranks."""
    job = adapter_class(framework).job_class()
    size = job.topology.size
    total = job.sum(np.array([job.topology.rank + 1.0]))[0]
    right = bool(total == size * (size + 1) / 2)
    if launched_rank() == 0:
        print("all-reduce is right" if right else f"all-reduce is wrong: {total}")
    return 0 if right else 1
