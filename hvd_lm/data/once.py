"""What one rank has made of a text, for all ranks of its host: it is worked out once, and held once.

    the first one to come    makes the arrays, and writes them down in the system's folder for temporary files
    the others               wait for that, and map them; what is mapped is the same memory in all of them
    the last one             removes the files: the memory stays as long as it is mapped

They find each other by the text, and by the job's name where its launcher gives one, before Horovod starts. Where they cannot,
each makes its own.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_lm.data.walk import TextFile
from hvd_lm.job import launcher

SHARED_FROM = 1 << 24
"""Bytes of text; of less a copy for each rank costs nothing."""
_SECONDS_LEFT_OVER = 24 * 3600.0
"""What a killed job has left is removed after so long."""
_DAMAGE = (OSError, ValueError, KeyError)
_WORDS, _READERS = "words.json", "readers"


@dataclass(frozen=True)
class Made:
    """Arrays by name, and plain values as JSON has them."""

    arrays: Mapping[str, NDArray[np.integer]]
    words: Any


def made_once(files: Iterable[TextFile], of_settings: Any, make: Callable[[], Made]) -> Made:
    """What `make` makes of `files` and of settings, plain values; or what another rank of this host has made of them.

    Raises what `make` raises.
    """
    if launcher.launched_local_size() == 1:
        return make()
    with ExitStack() as held:
        folder = None
        with suppress(OSError):
            if (name := _name(files, of_settings)) is not None:
                folder = held.enter_context(_locked(_own_folder() / name))
        if folder is None:
            return make()
        with suppress(*_DAMAGE):
            return _read(folder)
        made = make()
        with suppress(*_DAMAGE):
            _write(folder, made)
            made = _read(folder)
        return made


def _name(files: Iterable[TextFile], of_settings: Any) -> str | None:
    """The same for the same text, settings and job; None if there is too little text. Raises OSError."""
    found = [(str(file.path.resolve()), file.path.stat()) for file in files]
    if sum(status.st_size for _, status in found) < SHARED_FROM:
        return None
    identity = [(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) for path, status in found]
    words = json.dumps([launcher.job_name(), of_settings, identity])
    return hashlib.sha256(words.encode()).hexdigest()


def _own_folder() -> Path:
    """Of this user, which nobody else can write in. Raises OSError."""
    folder = Path(tempfile.gettempdir()) / f"hvd_lm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not folder.is_dir():
        raise PermissionError(f"{folder} is open to others")
    for left in folder.iterdir():
        if time.time() - left.stat().st_mtime > _SECONDS_LEFT_OVER:
            shutil.rmtree(left, ignore_errors=True)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Make `folder`, and be the only one that has it, for as long as this process lives within. Raises OSError."""
    descriptor = None
    while descriptor is None:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            descriptor = _lock(folder)
    try:
        yield folder
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """The descriptor, once nobody else has the folder; None if it was removed meanwhile. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _write(folder: Path, made: Made) -> None:
    """Raises OSError."""
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, array in made.arrays.items():
        np.save(folder / f"{name}.npy", array)
    # Last: what has it is whole.
    (folder / _WORDS).write_text(json.dumps({"arrays": list(made.arrays), "words": made.words}), encoding="utf-8")


def _read(folder: Path) -> Made:
    """Maps what is there; the last of this host's ranks to do so removes the files. Raises one of _DAMAGE."""
    description = json.loads((folder / _WORDS).read_text(encoding="utf-8"))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in description["arrays"]}
    with (folder / _READERS).open("ab") as readers:
        readers.write(b".")
        count = readers.tell()
    if count >= launcher.launched_local_size():
        shutil.rmtree(folder, ignore_errors=True)
    return Made(arrays, description["words"])
