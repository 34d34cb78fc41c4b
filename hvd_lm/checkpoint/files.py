"""Files that must be whole or absent: checksums, and folders that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from errno import EINVAL, ENOSYS, ENOTSUP
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hvd_lm.errors import ConfigError


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


def publish(staging: Path, folder: Path) -> None:
    """Give the complete folder `staging` its name, which nothing else may have. Raises OSError."""
    for path in (*staging.iterdir(), staging):
        sync(path)
    staging.rename(folder)
    sync(folder.parent)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A place to make what ``--out`` names; it gets its name when the block ends, and nothing is left if the block raises.

    Raises ConfigError if `out` exists already and is not an empty folder, or something cannot be written.
    """
    folder = out.resolve()
    staging = folder.with_name(f".{folder.name}.partial")
    try:
        if _is_taken(folder):
            raise ConfigError(f"--out {out} exists already: give another folder, or remove it first")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        # An empty folder gives way.
        publish(staging, folder)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot write to --out {out}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_taken(folder: Path) -> bool:
    if not folder.is_dir():
        return folder.exists()
    # Its replacement would leave a shell that stands in it without a folder.
    return folder == Path.cwd() or any(folder.iterdir())
