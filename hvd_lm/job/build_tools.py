"""What a build talks with: a person, commands, pip; and the error that ends it. The standard library only, as `build_horovod`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
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
    """Run `command`; return its output, or raise BuildError with its first errors and its last lines."""
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = done.stdout.splitlines()
        errors = [line for line in lines[:-40] if re.search(r"\berror\b:|CMake Error", line)]
        raise BuildError("\n".join([f"`{' '.join(command)}` ended with {done.returncode}:", *errors[:10], *lines[-40:]]))
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
