"""The errors a user can cause. Each message is one line and says what to do; the command line prints it on one rank.

`why` is the end of every message about something that the operating system refused.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class HvdLmError(Exception):
    """Base of the family: ends the job with `exit_code` and one line instead of a traceback."""

    exit_code = 2
    speaker: int | None = 0
    """Which rank tells it, at once; the others do so later, where they are still there. None: one that has left the job."""


class ConfigError(HvdLmError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(HvdLmError):
    """A text that is missing, unreadable, empty or too short for what was asked."""


class FrameworkError(HvdLmError):
    """A framework, or Horovod for it, is not installed or does not load."""


class CheckpointError(HvdLmError):
    """A checkpoint that is missing, damaged or does not fit the model."""


class TrainingError(HvdLmError):
    """Training cannot go on: the loss or the gradients are not finite."""

    exit_code = 3


class LostWorkerError(HvdLmError):
    """Another rank went away, or a collective operation failed."""

    exit_code = 4


class StoppedError(HvdLmError):
    """Training was asked to stop, and did: it can go on from its checkpoint."""

    exit_code = 5


class MembersChangedError(HvdLmError):
    """Workers of an elastic job are about to come or go; nobody is told, since it goes on."""


class RemovedError(HvdLmError):
    """The host of this worker has left an elastic job, which goes on."""

    exit_code = 0


class OutOfMemoryError(HvdLmError):
    """There is no memory for what is computed, in the machine or in its GPU."""

    exit_code = 3


class BugError(HvdLmError):
    """What nobody expects, on another rank, or on this one alone; the message ends with its traceback."""

    exit_code = 1


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raises ConfigError for a field of `config` that is given, and is not above 0 and finite."""
    for name in names:
        value = getattr(config, name)
        require(value is None or 0 < value < math.inf, f"--{name.replace('_', '-')} must be above 0 and finite, not {value}")


# --- what the operating system refuses -------------------------------------------------------------------

_ADVICE: Mapping[int, str] = {
    errno.EACCES: "this user may not: change the permissions, or name another place",
    errno.EPERM: "this user may not: change the owner or permissions, or name another place",
    errno.EROFS: "nothing can be written on that file system: name another place",
    errno.ENOSPC: "make room there, or name another place",
    errno.EDQUOT: "this user's quota is used up: remove files there, or name another place",
    errno.EFBIG: "that file system, or ulimit -f, allows no larger file: name another place",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a part of that path is a file, not a folder: check the name",
    errno.EISDIR: "that is a folder: name a file",
    errno.EEXIST: "something is there already: remove it, or name another place",
    errno.ENOTEMPTY: "something is there already: remove it, or name another place",
    errno.ELOOP: "links lead in a circle there: check the name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EILSEQ: "that file system does not take such a name: choose another one",
    errno.EXDEV: "it cannot be moved to another file system: name a place on the same one",
    errno.EBUSY: "something else uses it: end that, or name another place",
    errno.ETXTBSY: "something else uses it: end that, or name another place",
    errno.EMFILE: "too many files are open: raise ulimit -n",
    errno.ENFILE: "too many files are open on this machine: end something",
    errno.ENOMEM: "the memory is used up: end something, or ask for less",
    errno.EIO: "the disk, or the way to it, fails: try another one",
    errno.ESTALE: "the network file system has lost it: try again, or name another place",
    errno.ENOTCONN: "the network file system is not mounted: mount it, or name another place",
}


def why(error: Exception, known: Path | None = None) -> str:
    """What the system said, of which path unless the message names it already (`known`), and what to do: the end of a message."""
    number = errno_of(error)
    name = getattr(error, "filename", None)
    about = f" ({os.fsdecode(name)})" if isinstance(name, (str, bytes, os.PathLike)) and os.fsdecode(name) != str(known) else ""
    said = os.strerror(number) if number else " ".join(str(error).split()) or type(error).__name__
    advice = f"; {_ADVICE[number]}" if number is not None and number in _ADVICE else ""
    return f"{said}{about}{advice}"


def in_family(error: Exception) -> HvdLmError | None:
    """`error` as one of the family: itself, or what the system or a framework has no room for or refuses; None for a bug."""
    if isinstance(error, HvdLmError):
        return error
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return HvdLmError(why(error))
    if _is_out_of_memory(error):
        amount = _AMOUNT.search(str(error))
        asked = f" (what was asked for: {amount[1]})" if amount else ""
        advice = "take a smaller batch, shorter sequences or a smaller model, or start fewer ranks on this machine"
        return OutOfMemoryError(f"the memory is used up{asked}: {advice}")
    return None


_NO_MEMORY = re.compile(r"(can't|cannot|unable to) allocate|(out of|not enough) memory|bad_alloc", re.IGNORECASE)
_AMOUNT = re.compile(r"(\d[\d.]* ?(?:bytes|[KMGTPE]i?B)|shape ?\[[\d,]+\])")


def _is_out_of_memory(error: Exception) -> bool:
    """Also of a framework's, which have no type in common."""
    named = type(error).__name__ == "ResourceExhaustedError"  # TensorFlow's, of which only the name is known here
    return isinstance(error, MemoryError) or named or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def errno_of(error: Exception) -> int | None:
    """Also of an error of the libraries written in Rust, which tell it in words."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
