"""The folder of a run: one run at a time has it, what an earlier one left moves aside, and errors of writing are one line."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hvd_lm import checkpoint as checkpoints
from hvd_lm.checkpoint.files import lock
from hvd_lm.errors import ConfigError, why
from hvd_lm.job import launcher
from hvd_lm.job.messages import warn

LOCK = ".lock"
SECONDS_BETWEEN_SIGNS = 10.0
"""So often the holder of a folder touches its lock: hosts that share the folder may share no locks, and no process numbers."""
SECONDS_TO_END = 2.0
"""A process that was killed has its locks for that long at most, until its memory is given back."""
SECONDS_OF_SILENCE = 60.0
"""After so long without a sign the holder on another host is taken for dead."""
_RUN_FILES = ("config.yaml", "metrics.jsonl", "tensorboard", "tokenizer.json", checkpoints.FOLDER)


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises ConfigError for what cannot be written within."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write to --out {out}: {why(error, out)}") from error


def prepare_folder(out: Path, *, goes_on_after: int | None = None) -> None:
    """Make `out`, and move what an earlier run left in it aside, so that nothing is lost.

    With `goes_on_after` that run goes on, and only its checkpoints after this step are moved.
    Raises ConfigError if it cannot be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
        names = (out / f"earlier-{number}" for number in itertools.count(1))
        aside = next(path for path in names if not os.path.lexists(path))
        if goes_on_after is not None:
            checkpoints.discard_after(goes_on_after, out, aside)
        elif earlier := [path for name in _RUN_FILES if (path := out / name).exists()]:
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)


# --- one run at a time -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """Who has a folder, as its lock tells."""

    pid: int
    host: str
    kernel: str
    """Of the running system: the same in all of its containers, whatever their host names; another one after a reboot."""
    since: str
    job: str = ""
    """Where the workers of an elastic job meet: when its rank 0 dies, another one has the folder at once."""

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, since {self.since}"


def _this_process() -> Holder:
    kernel = ""
    with contextlib.suppress(OSError):
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    host = socket.gethostname()
    job = launcher.meeting_place()
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return Holder(os.getpid(), host, kernel or host, since, f"{job[0]}:{job[1]}" if job else "")


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Have the folder `out` of a run for as long as this process lives within.

    Raises ConfigError that says who has it, if a process has that lives, or may live, or if it cannot be written.
    """
    path = out / LOCK
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path)
    ended = threading.Event()
    signs = threading.Thread(target=_give_signs, args=(descriptor, ended), name="lock", daemon=True)
    signs.start()
    try:
        yield
    finally:
        ended.set()
        signs.join()
        # While it is still locked: a process that waits at the old file sees that it is gone.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _give_signs(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(SECONDS_BETWEEN_SIGNS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _take(path: Path) -> int:
    """The descriptor of the lock file, which is now ours. Raises OSError, ConfigError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _refuse_if_held(path, descriptor)
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(asdict(_this_process())).encode(), 0)
                os.fsync(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The run that had it has just ended, and its lock with it.
        os.close(descriptor)


def _patient_lock(descriptor: int) -> Literal["taken", "held", "unknown"]:
    """As `lock`, once who has it has had the time to end."""
    patient_until = time.monotonic() + SECONDS_TO_END
    while (found := lock(descriptor)) == "held" and time.monotonic() < patient_until:
        time.sleep(0.05)
    return found


def _refuse_if_held(path: Path, descriptor: int) -> None:
    found, holder = _patient_lock(descriptor), _holder(descriptor)
    if found == "held":
        raise ConfigError(f"--out {path.parent} is that of a run in progress ({holder or 'which just begins'}): {_ADVICE}")
    this = _this_process()
    if holder is None or (found == "taken" and holder.kernel == this.kernel) or (holder.job and holder.job == this.job):
        return
    silent = _seconds_since_a_sign(path, descriptor)
    if silent < SECONDS_OF_SILENCE:
        raise ConfigError(
            f"--out {path.parent} is that of a run in progress ({holder}; its last sign of life was {silent:.0f} s ago): "
            f"{_ADVICE}; if it is dead, try again in {SECONDS_OF_SILENCE:.0f} s, or remove {path}"
        )
    warn(f"--out {path.parent} was that of a run which has given no sign of life for {silent:.0f} s ({holder}): taking it over")


_ADVICE = "wait for its end, or give another --out"


def _holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _seconds_since_a_sign(path: Path, descriptor: int) -> float:
    """By the clock of the file system, which hosts share."""
    probe = path.with_name(f"{path.name}-{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - os.fstat(descriptor).st_mtime
    finally:
        probe.unlink()
