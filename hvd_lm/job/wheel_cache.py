"""The cache of built wheels: per user, whole or not at all. The standard library only, as `build_horovod`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from hvd_lm.job.build_tools import BuildError, say
else:
    from build_tools import BuildError, say


def cache_root() -> Path:
    """What hvd_lm keeps between runs, per user."""
    if base := os.environ.get("HVD_LM_CACHE"):
        return Path(base)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvd_lm"
    except RuntimeError:
        raise BuildError("nothing says where the home folder is: set HVD_LM_CACHE to a folder for the wheel") from None


def cache_directory() -> Path:
    """Where wheels are kept."""
    return cache_root() / "horovod"


def require_own(folder: Path) -> None:
    """Raises BuildError if another user could have written into `folder`, or put it there: its wheel would run as this user."""
    root = cache_root()
    for path in (folder, *(parent for parent in folder.parents if parent.is_relative_to(root))):
        with contextlib.suppress(FileNotFoundError):
            itself, target = path.lstat(), path.stat()
            if not {itself.st_uid, target.st_uid} <= {0, os.geteuid()}:
                problem = "belongs to another user"
            elif target.st_mode & 0o022:
                problem = "can be written by others"
            else:
                continue
            raise BuildError(f"{path} {problem}, and the wheel in it is not trusted: remove it, or set HVD_LM_CACHE elsewhere")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cached_wheel(folder: Path) -> Path | None:
    """The wheel in `folder` if its checksum holds; a broken entry is removed. Raises as `require_own`."""
    require_own(folder)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        return None
    checksum = folder / "sha256"
    if len(wheels) == 1 and checksum.is_file() and checksum.read_text().strip() == digest(wheels[0]):
        return wheels[0]
    say(f"the cached wheel in {folder} is broken: it will be built again")
    shutil.rmtree(folder)
    return None


def store(wheel: Path, folder: Path) -> Path:
    """Move `wheel` into the cache; complete or not at all, whoever else builds at the same time. Raises as `require_own`."""
    for missing in reversed([path for path in folder.parents if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    require_own(folder)
    staging = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    shutil.copy2(wheel, staging / wheel.name)
    (staging / "sha256").write_text(digest(staging / wheel.name) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        staging.rename(folder)
    except OSError:  # another build was faster: its wheel is as good
        shutil.rmtree(staging)
    return folder / wheel.name
