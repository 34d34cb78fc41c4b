"""Checkpoints that belong to no framework: canonical NumPy arrays in safetensors, everything else in JSON.

    <run>/checkpoints/step-00000020/
        weights.safetensors     canonical weights (hvd_lm.model.weights)
        optimizer.safetensors   <moment>/<weight name>
        state.safetensors       lstm: h and c of every stream, all layers side by side, [2, S, U]
        checkpoint.json         format, step, model, optimizer, progress of the run, SHA-256 of every file and of itself
        tokenizer.json          HF tokenizers
    <run>/checkpoints/best      link to the one with the lowest validation loss

Format 1 had [L, 2, S, H] in state.safetensors, and models whose layers were all as wide; it is read too.

A folder appears under its name only when it is complete (written beside it, synced, renamed). Nothing is pickled.
Generators need no state: dropout masks are functions of the seed and of the number of micro-batches read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hvd_lm.adapters.base import OptimizerState
from hvd_lm.checkpoint.files import checksum, sha256
from hvd_lm.config import ModelConfig, OptimizerConfig, from_dict
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.sources import Position
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import CheckpointError
from hvd_lm.job.messages import warn
from hvd_lm.model.weights import Array, Weights, check_weights
from hvd_lm.training.loss_scale import LossScale

FORMAT_VERSION = 2
_READ = (1, 2)
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
    lstm_state_2SU: NDArray[np.float32]
    """h and c of all streams, all layers side by side, ``float32 [2, S, U]``."""
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


def exists(run: Path) -> bool:
    """Whether the folder of a run holds a checkpoint, whole or damaged."""
    return bool(folders(run))


def discard_after(step: int, run: Path, aside: Path) -> None:
    """Move the checkpoints of `run` after `step` to `aside`: the run goes on another way from there."""
    for folder in folders(run):
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
    return _load(path, load_file)


def load_model(path: Path) -> Checkpoint:
    """As `load`, without the moments, which are twice as large as the weights: for those who only read the model."""
    return _load(path, lambda _: {})


_ReadMoments = Callable[[Path], dict[str, Array]]


def _load(path: Path, read_moments: _ReadMoments) -> Checkpoint:
    if path.name.startswith("step-") or (path / "checkpoint.json").is_file():
        return _load_folder(path, read_moments)
    found = folders(path)
    if not found:
        raise CheckpointError(f"no checkpoint in {path}: give the --out folder of a training run, or one of its {FOLDER}/step-*")
    *older, newest = found
    try:
        return _load_folder(newest, read_moments)
    except CheckpointError as damage:
        for folder in reversed(older):
            with suppress(CheckpointError):
                whole = _load_folder(folder, read_moments)
                warn(f"{damage}; taking the one before, {folder.name}")
                return whole
        raise


def _load_folder(folder: Path, read_moments: _ReadMoments) -> Checkpoint:
    try:
        description = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        version = description["format_version"]
        if version not in _READ:
            raise CheckpointError(f"it has format {version}, this hvd_lm reads {', '.join(map(str, _READ))}")
        _check_sums(folder, description)
        model = from_dict(ModelConfig, description["model"])
        optimizer = from_dict(OptimizerConfig, description["optimizer"])
        weights = load_file(folder / "weights.safetensors")
        check_weights(weights, model)
        state = OptimizerState(description["applied_steps"], read_moments(folder / "optimizer.safetensors"))
        lstm_state = load_file(folder / "state.safetensors")["lstm"]
        progress = _progress(description["progress"], _side_by_side(lstm_state) if version == 1 else lstm_state)
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


def _side_by_side(state_L2SH: NDArray[np.float32]) -> NDArray[np.float32]:
    """The states of format 1 as [2, S, U]."""
    return np.concatenate(state_L2SH, axis=2)


def _progress(description: dict[str, Any], lstm_state_2SU: NDArray[np.float32]) -> Progress:
    position = description["position"]
    segments = tuple((int(start), int(stop)) for start, stop in position["segments"])
    scale = description["loss_scale"]
    return from_dict(
        Progress,
        description
        | {
            "position": from_dict(Position, position | {"segments": segments}),
            "loss_scale": scale and from_dict(LossScale, scale),
            "lstm_state_2SU": lstm_state_2SU,
        },
    )


def folders(run: Path) -> list[Path]:
    """The complete checkpoints of `run`, oldest first."""
    return sorted((run / FOLDER).glob("step-*"), key=lambda folder: (len(folder.name), folder.name))
