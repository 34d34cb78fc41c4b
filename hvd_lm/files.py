"""Files that must be whole or absent: checksums, and folders that appear under their name only when they are complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description's content, whatever its layout in the file."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(staging: Path, folder: Path) -> None:
    """Give the complete folder `staging` its name, which nothing else may have. Raises OSError."""
    for path in (*staging.iterdir(), staging):
        sync(path)
    staging.rename(folder)
    sync(folder.parent)
