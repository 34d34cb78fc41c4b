"""Writing checkpoints, beside training: whole or not at all, and no more of them than asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Self

from hvd_lm.checkpoint import tensors
from hvd_lm.checkpoint.files import checksum, publish, replace_file, sha256
from hvd_lm.checkpoint.format import (
    BEST,
    FOLDER,
    FORMAT_VERSION,
    MEMORY,
    MOMENTS,
    STATE,
    WEIGHTS,
    Checkpoint,
    best_of,
    folders,
    is_name,
    name_of,
)
from hvd_lm.checkpoint.tensors import Tensors
from hvd_lm.errors import CheckpointError, why
from hvd_lm.model.weights import Array
from hvd_lm.plain_values import to_dict


class _Arrays:
    """The arrays of a checkpoint on their way to the disk, in memory that training may be about to change."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files: dict[str, Mapping[str, Array]] = {
            WEIGHTS: checkpoint.weights,
            MOMENTS: checkpoint.optimizer_state.moments,
            STATE: {"lstm": checkpoint.progress.lstm_state_2SU},
            **({MEMORY: checkpoint.memory} if checkpoint.memory else {}),
        }
        self._lock = Lock()
        self._written = Event()
        self._written.set()

    def write(self, folder: Path) -> None:
        while self._files:
            with self._lock:
                name = next(iter(self._files))
                arrays = self._files.pop(name)
                self._written.clear()
            try:
                tensors.write(tensors.of_arrays(arrays), folder / name)
            finally:
                self._written.set()

    def release(self) -> None:
        """Needs the memory no more: copies what is in no file yet, and waits for the file that is being written."""
        with self._lock:
            for name, arrays in self._files.items():
                # What nobody can write to is safe as it is.
                self._files[name] = {key: array.copy() if array.flags.writeable else array for key, array in arrays.items()}
        self._written.wait()


def save(checkpoint: Checkpoint, run: Path, *, keep: int) -> Path:
    """Write `checkpoint` into `run`, then remove all but the newest `keep` and the best one; returns its folder."""
    return _save(checkpoint, _Arrays(checkpoint).write, run, keep)


def _save(checkpoint: Checkpoint, write_arrays: Callable[[Path], None], run: Path, keep: int) -> Path:
    folder = run / FOLDER / name_of(checkpoint.step)
    staging = _partial(folder)
    _remove_partial(folder.parent)
    staging.mkdir(parents=True)
    progress = checkpoint.progress
    write_arrays(staging)
    checkpoint.tokenizer.save(staging / "tokenizer.json")
    description = {
        "format_version": FORMAT_VERSION,
        "step": checkpoint.step,
        "applied_steps": checkpoint.optimizer_state.applied_steps,
        "model": to_dict(checkpoint.model),
        "optimizer": to_dict(checkpoint.optimizer),
        "progress": {k: v for k, v in to_dict(progress).items() if k != "lstm_state_2SU"},
        "files": {path.name: sha256(path) for path in sorted(staging.iterdir())},
    }
    text = json.dumps(description | {"checksum": checksum(description)}, indent=2)
    (staging / "checkpoint.json").write_text(text + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    publish(staging, folder)
    if progress.is_best:
        _note_best(folder)
    best = best_of(run)
    for old in folders(run)[:-keep]:
        if old != best:
            # Under this name first, so that none is ever seen in part.
            old.rename(_partial(old))
    _remove_partial(folder.parent)
    return folder


def _note_best(folder: Path) -> None:
    """In a file: not every file system has links."""
    replace_file(folder.with_name(BEST), f"{folder.name}\n")


def _partial(folder: Path) -> Path:
    """Where a checkpoint is until it is complete, and from when on it is not."""
    return folder.with_name(f".{folder.name}.partial")


def _remove_partial(parent: Path) -> None:
    for left in parent.glob(".step-*.partial"):
        if is_name(left.name[1:].removesuffix(".partial")):
            shutil.rmtree(left, ignore_errors=True)


class CheckpointWriter:
    """Writes checkpoints beside training, one at a time: the loop waits only if the one before is not on the disk yet."""

    def __init__(self, run: Path, keep: int) -> None:
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None
        self._arrays: _Arrays | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def write(self, checkpoint: Checkpoint) -> None:
        """Begin to write `checkpoint`, whose arrays nobody may change before `release`. Raises as `wait`."""
        self.wait()
        self._arrays = _Arrays(checkpoint)
        self._pending = self._thread.submit(_save, checkpoint, self._arrays.write, self._run, self._keep)

    def write_parts(self, checkpoint: Checkpoint, weights: Tensors, moments: Tensors, memory: Tensors) -> None:
        """Write `checkpoint`, of which `weights`, `moments` and `memory` come piece by piece, before this returns.

        Raises as `wait`.
        """
        self.wait()

        def write(folder: Path) -> None:
            state = tensors.of_arrays({"lstm": checkpoint.progress.lstm_state_2SU})
            for name, of_file in ((WEIGHTS, weights), (MOMENTS, moments), (MEMORY, memory), (STATE, state)):
                if of_file.shapes or name != MEMORY:
                    tensors.write(of_file, folder / name)

        with self._reported():
            _save(checkpoint, write, self._run, self._keep)

    def release(self) -> None:
        """Let the arrays of the checkpoint that is being written change: of those that are not on the disk yet it takes copies.

        In a window of usual length they are all written by then, so that a checkpoint costs neither time nor memory.
        """
        if self._arrays:
            self._arrays.release()
            self._arrays = None

    def wait(self) -> None:
        """Until everything is on the disk. Raises CheckpointError if the last one could not be written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        with self._reported():
            pending.result()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write a checkpoint into {self._run}: {why(error)}; then go on with --resume auto"
            ) from error
