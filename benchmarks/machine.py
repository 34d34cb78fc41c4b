"""What a record says of where and how it was taken."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hvd_lm.communication.measure import processor

_PACKAGES = ("hvd_lm", "horovod", "torch", "tensorflow", "tensorflow-cpu", "keras", "numpy")


def describe() -> dict[str, Any]:
    """Command, date, versions and hardware."""
    return {
        "command": "python -m benchmarks " + shlex.join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "describe", "--always", "--dirty"),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "mpi": _output("mpirun", "--version").partition("\n")[0],
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def one_line(description: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items())
    return f"{description['date']}, {description['cpu']} ({description['cores']} cores), {versions}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    folder = Path(__file__).parent
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder).stdout.strip()
