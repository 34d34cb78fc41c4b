"""Checkpoints that belong to no framework: canonical NumPy arrays in safetensors, everything else in JSON.

    <run>/checkpoints/step-00000020/
        weights.safetensors     canonical weights (hvd_lm.weights)
        optimizer.safetensors   <moment>/<weight name>
        state.safetensors       lstm: the LSTM state of every stream, [L, 2, S, H]
        checkpoint.json         format, step, model, optimizer, progress of the run, SHA-256 of every file and of itself
        tokenizer.json          HF tokenizers
    <run>/checkpoints/best      link to the one with the lowest validation loss

A folder appears under its name only when it is complete (written beside it, synced, renamed). Nothing is pickled.
Generators need no state: dropout masks are functions of the seed and of the number of micro-batches read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hvd_lm.adapters.base import OptimizerState
from hvd_lm.config import ModelConfig, OptimizerConfig, from_dict, to_dict
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.streams import Position
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import CheckpointError
from hvd_lm.files import checksum, publish, sha256, sync
from hvd_lm.launch import warn
from hvd_lm.loss_scale import LossScale
from hvd_lm.weights import Array, Weights, check_weights

FORMAT_VERSION = 1
FOLDER = "checkpoints"
BEST = "best"


@dataclass(frozen=True)
class Progress:
    """What a run needs beside weights and moments to go on exactly where it was."""

    epoch: int
    """Passes over the text that are complete."""
    position: Position
    """Where the streams are within the epoch."""
    micro_batches: int
    """Read of each stream since the run began; the counter of the dropout masks."""
    tokens: int
    """Targets so far, all ranks."""
    seconds: float
    """Training time so far."""
    text: str
    """Fingerprint of the texts and of the tokenizer."""
    lstm_state_L2SH: NDArray[np.float32]
    """LSTM state of all streams, ``float32 [L, 2, S, H]``."""
    loss_scale: LossScale | None = None
    validation_loss: float | None = None
    """Nats per token after this very step, if there was a validation."""
    best_validation_loss: float | None = None
    """The lowest so far."""
    settings: Mapping[str, Any] | None = None
    """The run's configuration, as plain values: for people, and to tell what changed."""

    @property
    def is_best(self) -> bool:
        """Whether no validation so far was better than the one after this step."""
        return self.validation_loss is not None and self.validation_loss == self.best_validation_loss


@dataclass(frozen=True)
class Checkpoint:
    """What a run is after `step` optimizer steps."""

    step: int
    model: ModelConfig
    optimizer: OptimizerConfig
    weights: Weights
    optimizer_state: OptimizerState
    tokenizer: Tokenizer
    progress: Progress


# --- writing ---------------------------------------------------------------------------------------------


class _Arrays:
    """The arrays of a checkpoint on their way to the disk, in memory that training may be about to change."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files: dict[str, Mapping[str, Array]] = {
            "weights.safetensors": checkpoint.weights,
            "optimizer.safetensors": checkpoint.optimizer_state.moments,
            "state.safetensors": {"lstm": checkpoint.progress.lstm_state_L2SH},
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
                save_file(_contiguous(arrays), folder / name)
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
    return _save(checkpoint, _Arrays(checkpoint), run, keep)


def _save(checkpoint: Checkpoint, arrays: _Arrays, run: Path, keep: int) -> Path:
    folder = run / FOLDER / f"step-{checkpoint.step:08d}"
    staging = folder.with_name(f".{folder.name}.partial")
    for left in folder.parent.glob(".step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir(parents=True)
    progress = checkpoint.progress
    arrays.write(staging)
    checkpoint.tokenizer.save(staging / "tokenizer.json")
    description = {
        "format_version": FORMAT_VERSION,
        "step": checkpoint.step,
        "applied_steps": checkpoint.optimizer_state.applied_steps,
        "model": to_dict(checkpoint.model),
        "optimizer": to_dict(checkpoint.optimizer),
        "progress": {k: v for k, v in to_dict(progress).items() if k != "lstm_state_L2SH"},
        "files": {path.name: sha256(path) for path in sorted(staging.iterdir())},
    }
    text = json.dumps(description | {"checksum": checksum(description)}, indent=2)
    (staging / "checkpoint.json").write_text(text + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    publish(staging, folder)
    if progress.is_best:
        _link_best(folder)
    best = (folder.parent / BEST).resolve()
    for old in _folders(run)[:-keep]:
        if old.resolve() != best:
            shutil.rmtree(old)
    return folder


def _link_best(folder: Path) -> None:
    link = folder.with_name(f".{BEST}.partial")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.rename(folder.with_name(BEST))
    sync(folder.parent)


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
        self._pending = self._thread.submit(_save, checkpoint, self._arrays, self._run, self._keep)

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
        try:
            pending.result()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot write a checkpoint into {self._run}: {getattr(error, 'strerror', None) or error}; "
                "make room there, then go on with --resume auto"
            ) from error


# --- reading ---------------------------------------------------------------------------------------------


def exists(run: Path) -> bool:
    """Whether the folder of a run holds a checkpoint, whole or damaged."""
    return bool(_folders(run))


def discard_after(step: int, run: Path, aside: Path) -> None:
    """Move the checkpoints of `run` after `step` to `aside`: the run goes on another way from there."""
    for folder in _folders(run):
        if folder.name > f"step-{step:08d}":
            (aside / FOLDER).mkdir(parents=True, exist_ok=True)
            folder.rename(aside / FOLDER / folder.name)
    best = run / FOLDER / BEST
    if best.is_symlink() and not best.exists():
        best.unlink()


def load(path: Path) -> Checkpoint:
    """The checkpoint in `path`: the folder of one, or of a run (then its newest that is whole; damaged ones are named).

    Raises CheckpointError if there is none, or it is damaged or of another format.
    """
    if path.name.startswith("step-") or (path / "checkpoint.json").is_file():
        return _load_folder(path)
    folders = _folders(path)
    if not folders:
        raise CheckpointError(f"no checkpoint in {path}: give the --out folder of a training run, or one of its {FOLDER}/step-*")
    *older, newest = folders
    try:
        return _load_folder(newest)
    except CheckpointError as damage:
        for folder in reversed(older):
            with suppress(CheckpointError):
                found = _load_folder(folder)
                warn(f"{damage}; taking the one before, {folder.name}")
                return found
        raise


def _load_folder(folder: Path) -> Checkpoint:
    try:
        description = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        version = description["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(f"it has format {version}, this hvd_lm reads {FORMAT_VERSION}")
        _check_sums(folder, description)
        model = from_dict(ModelConfig, description["model"])
        optimizer = from_dict(OptimizerConfig, description["optimizer"])
        weights = load_file(folder / "weights.safetensors")
        check_weights(weights, model)
        state = OptimizerState(description["applied_steps"], load_file(folder / "optimizer.safetensors"))
        progress = _progress(description["progress"], load_file(folder / "state.safetensors")["lstm"])
        tokenizer = tokenizers.load(folder / "tokenizer.json")
        if tokenizer.vocabulary_size != model.vocabulary_size:
            raise CheckpointError(f"{tokenizer.vocabulary_size} words for a model of {model.vocabulary_size}")
        return Checkpoint(description["step"], model, optimizer, weights, state, tokenizer, progress)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, CheckpointError, RecursionError) as error:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            raise CheckpointError(f"no checkpoint in {folder}: it does not exist") from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(f"the checkpoint {folder} cannot be used ({reason}): take another one") from error


def _check_sums(folder: Path, description: dict[str, Any]) -> None:
    """Raises CheckpointError naming the file that is not as it was written."""
    if description["checksum"] != checksum({key: value for key, value in description.items() if key != "checksum"}):
        raise CheckpointError("checkpoint.json was altered")
    for name, expected in description["files"].items():
        if sha256(folder / name) != expected:
            raise CheckpointError(f"{name} was altered or truncated")


def _progress(description: dict[str, Any], lstm_state_L2SH: NDArray[np.float32]) -> Progress:
    position = description["position"]
    segments = tuple((int(start), int(stop)) for start, stop in position["segments"])
    scale = description["loss_scale"]
    return from_dict(
        Progress,
        description
        | {
            "position": from_dict(Position, position | {"segments": segments}),
            "loss_scale": scale and from_dict(LossScale, scale),
            "lstm_state_L2SH": lstm_state_L2SH,
        },
    )


def _folders(run: Path) -> list[Path]:
    """The complete checkpoints of `run`, oldest first."""
    return sorted((run / FOLDER).glob("step-*"), key=lambda folder: (len(folder.name), folder.name))


def _contiguous(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """safetensors writes memory as it lies, whatever the strides say."""
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
