"""Files that must be whole or absent: checksums, locks, and what appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from errno import EINVAL, ENOSYS, ENOTSUP
from pathlib import Path
from typing import Any, Literal, TextIO

from safetensors import SafetensorError

from hvd_lm.errors import ConfigError, DataError, why


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description's content, whatever its layout in the file."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


_CANNOT_SYNC = (EINVAL, ENOTSUP, ENOSYS)
"""What file systems say that have no way to, as some of clouds for folders."""


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, where that can be asked for. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str) -> None:
    """Give the file at `path` another content: whoever reads it sees the one before, or all of this. Raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A file to write text to, in place of the one at `path` once the block ends: that one stays as it is if the block raises, or
    a signal ends the process. What is no plain file (a pipe, a device) is written to at once.

    Raises OSError, before the block if nothing can be written there.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with _text(target) as file:
            yield file
        return
    if target.exists():
        os.close(os.open(target, os.O_WRONLY))  # who may not write it may not replace it either
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with _ended_by_exception():
        try:
            with _text(partial) as file:
                yield file
            if target.exists():
                shutil.copymode(target, partial)
            sync(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """A file to write to. What it cannot take is not told a second time, when it is closed. Raises OSError."""
    file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    file.close()


def lock(descriptor: int) -> Literal["taken", "held", "unknown"]:
    """Try to be the only process that has an open file or folder, until it is closed; the system lets go when a process dies.

    Some network file systems have no locks, some only those of one host.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unknown"
    return "taken"


def publish(staging: Path, folder: Path) -> None:
    """Give the complete folder `staging` its name, which nothing else may have. Raises OSError."""
    for path in (*staging.iterdir(), staging):
        sync(path)
    staging.rename(folder)
    sync(folder.parent)


@contextlib.contextmanager
def new_folder(out: Path, header: str) -> Iterator[Path]:
    """A place to make what ``--out`` names; nothing is left if the block raises, or a signal ends the process.

    What does not exist yet appears whole when the block ends. An empty folder, which may be a mounted volume, is filled then, with
    `header` last: it is complete when that is there. Either way it is known before the block that this can be done.
    Raises ConfigError if `out` exists already and is not an empty folder, if another process makes it, or if something cannot be
    written; DataError if something else cannot be read.
    """
    try:
        folder = out.resolve()
        fills = folder.is_dir()
        taken = _is_taken(folder)
    except (OSError, RuntimeError) as error:  # Path.resolve: a loop of links
        raise ConfigError(f"cannot use --out {out}: {why(error, out)}") from error
    if taken:
        raise ConfigError(f"--out {out} exists already: give another folder, or remove it first")
    staging = folder / _STAGING if fills else folder.with_name(f".{folder.name}{_STAGING}")
    try:
        with _ended_by_exception(), _claimed(staging, out):
            yield staging
            if fills:
                _fill(folder, staging, header)
            else:
                publish(staging, folder)
    except (OSError, SafetensorError) as error:
        name = getattr(error, "filename", None)
        if isinstance(name, str) and not (Path(name).is_relative_to(staging) or staging.is_relative_to(name)):
            raise DataError(f"cannot read {name}: {why(error, Path(name))}") from error
        raise ConfigError(f"cannot write to --out {out}: {why(error)}") from error


_STAGING = ".partial"
_NO_ENTRY = frozenset({_STAGING, "lost+found"})
"""What an empty folder may hold: what a process that was killed left, and what a new volume has."""


def _is_taken(folder: Path) -> bool:
    if not folder.is_dir():
        return folder.exists()
    return any(path.name not in _NO_ENTRY for path in folder.iterdir())


@contextlib.contextmanager
def _claimed(staging: Path, out: Path) -> Iterator[None]:
    """`staging` as an empty folder that no other process makes; it is gone after the block. Raises ConfigError or OSError."""
    staging.mkdir(parents=True, exist_ok=True)
    # Not through a link: what it leads to is not ours to empty.
    descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if lock(descriptor) == "held":
            raise ConfigError(f"another process is making --out {out}: wait for it, or give another folder")
        try:
            # A dead process holds no lock; what it left is removed.
            for path in staging.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            yield
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(descriptor)


def _fill(folder: Path, staging: Path, header: str) -> None:
    """Move what is in `staging` into `folder` around it, `header` last; nothing if one of them cannot be moved. Raises OSError."""
    moved = []
    try:
        for path in sorted(staging.iterdir(), key=lambda path: path.name == header):
            sync(path)
            if path.name == header:
                sync(folder)
            path.rename(folder / path.name)
            moved.append(folder / path.name)
        sync(folder)
    except BaseException:
        for path in moved:
            path.unlink()
        raise


@contextlib.contextmanager
def _ended_by_exception() -> Iterator[None]:
    """Signals that would end the process at once raise SystemExit in the block, so that what is half-made can be removed."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
