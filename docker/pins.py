#!/usr/bin/env python3
"""Writes docker/constraints.txt: the exact versions that the images hold, which are those of the environment that the tests run in.

    python docker/pins.py                             in the environment of `make setup`
    python docker/pins.py torch                       in one with a build of torch with CUDA: NVIDIA's packages
    python docker/pins.py 'tensorflow[and-cuda]'      in one with TensorFlow's

What is there stays, unless this environment has another version of it. `make setup` takes the same file.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FILE = Path(__file__).with_name("constraints.txt")
HEAD = "# What the images hold, and `make setup`. Written by `python docker/pins.py`; a test compares it with what is installed.\n"
ROOTS = ("hvd_lm[torch,tensorflow,mpi]", "horovod", "cmake", "wheel")
OURS = {"hvd-lm", "horovod"}


def closure(roots: Iterable[str]) -> dict[str, str]:
    """Name -> version, of everything installed here that `roots` need; without a local part (`+cpu`), which is an index's own."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = Version(distribution.version).public
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                needed = map(Requirement, distribution.requires or [])
                waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name: version for name, version in found.items() if name not in OURS}


def pins() -> dict[str, str]:
    """Name -> version, as the file says."""
    lines = (line.partition("#")[0].strip() for line in FILE.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if line)


def main(roots: Iterable[str]) -> None:
    """Write the file."""
    known = {**(pins() if FILE.exists() else {}), **closure(roots)}
    FILE.write_text(HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(known.items())), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or ROOTS)
