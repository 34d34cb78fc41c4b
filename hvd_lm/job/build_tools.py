"""What a build talks with: a person, commands, pip; and the error that ends it. The standard library only, as `build_horovod`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class BuildError(Exception):
    """The build cannot go on; the message says what to do."""


def say(message: str) -> None:
    """A line for the person who waits."""
    print(f"build_horovod: {message}", flush=True)


def run(command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run `command`; return its output, or raise BuildError with the last lines of it."""
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise BuildError(f"`{' '.join(command)}` ended with {done.returncode}:\n{tail}")
    return done.stdout


def pip(*arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """pip of this environment."""
    return run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], cwd=cwd, env=env)


def installed_version(*distributions: str) -> str | None:
    """The version of the first of `distributions` that is installed."""
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None
