"""Checkpoints that belong to no framework: canonical NumPy arrays in safetensors, everything else in JSON.

    <run>/checkpoints/step-00000020/
        weights.safetensors     canonical weights (hvd_lm.model.weights)
        optimizer.safetensors   <moment>/<weight name>
        compression.safetensors what ranks remember of compressed gradients (hvd_lm.compression.kept); absent if nothing
        state.safetensors       lstm: h and c of every stream, all layers side by side, [2, S, U]; of a projected h the rest is zero
        checkpoint.json         format, step, model, optimizer, progress of the run, SHA-256 of every file and of itself
        tokenizer.json          HF tokenizers
    <run>/checkpoints/best      names the one with the lowest validation loss (a link to it, from earlier versions)

Format 1 had [L, 2, S, H] in state.safetensors, and models whose layers were all as wide; it is read too.

A folder appears under its name only when it is complete (written beside it, synced, renamed). Nothing is pickled. A checkpoint may
come from anywhere: no name in it is followed, and types and sizes are checked before any memory of that size is asked for.
Generators need no state: dropout masks are functions of the seed and of the number of micro-batches read.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hvd_lm.adapters.base import OptimizerState
from hvd_lm.checkpoint import tensors
from hvd_lm.checkpoint.files import checksum, sha256
from hvd_lm.compression.kept import is_remembered
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.conform import count
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.sources import Position
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import CheckpointError, why
from hvd_lm.job.messages import warn
from hvd_lm.model.stages import parameters, state_size
from hvd_lm.model.weights import Array, Weights, check_weights
from hvd_lm.plain_values import from_dict
from hvd_lm.training.averaging import Averaging
from hvd_lm.training.loss_scale import LossScale
from hvd_lm.training.schedule import Schedule

FORMAT_VERSION = 2
_READ = (1, 2)
FOLDER = "checkpoints"
BEST = "best"
WEIGHTS, MOMENTS, STATE = "weights.safetensors", "optimizer.safetensors", "state.safetensors"
FILES = (MOMENTS, STATE, "tokenizer.json", WEIGHTS)
"""Of a checkpoint, beside its checkpoint.json."""
MEMORY = "compression.safetensors"
"""That some have, too."""
_MOST_RANKS = 1 << 12
"""That keep a gradient each in it."""
_LARGEST_DESCRIPTION = 1 << 24
"""Bytes of a checkpoint.json."""
_SPARE = 1 << 28
"""Bytes that a file may have beyond the moments of its model: states of many streams, long words."""


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
    """Nats per token after this very step, if there was a validation; of a classifier its share of errors."""
    best_validation_loss: float | None = None
    """The lowest so far."""
    validations_since_best: int = 0
    """None of which was lower."""
    averaging: Averaging = field(default_factory=Averaging)
    """Of --optimizer asgd. Once it has begun and a step was made, weights and the moment average have changed places."""
    schedule: Schedule | None = None
    """Of the learning rate; None from versions that counted it by steps alone."""
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
    memory: Mapping[str, Array] = field(default_factory=dict)
    """What ranks remember of compressed gradients (hvd_lm.compression.kept)."""


def exists(run: Path) -> bool:
    """Whether the folder of a run holds a checkpoint, whole or damaged. Raises CheckpointError if it cannot be looked into."""
    return bool(folders(run))


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint in the folder of a run, whole or damaged. Raises as `exists`."""
    found = folders(run)
    return step_of(found[-1]) if found else None


def discard_after(step: int, run: Path, aside: Path) -> None:
    """Move the checkpoints of `run` after `step` to `aside`: the run goes on another way from there."""
    for folder in folders(run):
        if step_of(folder) > step:
            (aside / FOLDER).mkdir(parents=True, exist_ok=True)
            folder.rename(aside / FOLDER / folder.name)
    best = run / FOLDER / BEST
    if (named := _named_by(best)) and not named.exists():
        best.unlink()


def load(path: Path) -> Checkpoint:
    """The checkpoint in `path`: the folder of one, or of a run (then its newest that is whole; damaged ones are named).

    Raises CheckpointError if there is none, or it is damaged or of another format.
    """
    return _load(path, _Readers(load_file, load_file, tensors.mapped))


def load_model(path: Path) -> Checkpoint:
    """As `load`, without the moments, which are twice as large as the weights, and more: for those who only read the model."""
    return _load(path, _Readers(load_file, lambda _: {}, lambda _: {}))


def mapped(path: Path) -> Checkpoint:
    """As `load`; weights and moments are read from their files when they are looked at."""
    return _load(path, _Readers(tensors.mapped, tensors.mapped, tensors.mapped))


def language_model(found: Checkpoint, path: Path) -> Checkpoint:
    """What was `found` in `path`, for those who want a text of it.

    Raises CheckpointError if it tells classes apart, or translates.
    """
    if found.model.classes:
        classes = ", ".join(found.model.classes[:5])
        raise CheckpointError(f"{path} is no language model, it tells classes apart ({classes}): hvd-lm sentiment predict asks it")
    if found.model.source_end is not None:
        raise CheckpointError(f"{path} is no language model, it translates: hvd-lm translate apply asks it")
    return found


class _Readers(NamedTuple):
    """How the arrays of a file are read."""

    weights: Callable[[Path], dict[str, Array]]
    moments: Callable[[Path], dict[str, Array]]
    memory: Callable[[Path], dict[str, Array]]
    """Of all ranks: never all at once."""


def _load(path: Path, readers: _Readers) -> Checkpoint:
    try:
        if named := _named_by(path):
            path = named
        is_one = _is_place(path) or (path / "checkpoint.json").is_file()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {why(error, path)}") from error
    if is_one:
        return _load_folder(path, readers)
    found = folders(path)
    if not found:
        raise CheckpointError(f"no checkpoint in {path}: give the --out folder of a training run, or one of its {FOLDER}/step-*")
    *older, newest = found
    try:
        return _load_folder(newest, readers)
    except CheckpointError as damage:
        for folder in reversed(older):
            with suppress(CheckpointError):
                whole = _load_folder(folder, readers)
                warn(f"{damage}; taking the one before, {folder.name}")
                return whole
        raise


def _load_folder(folder: Path, readers: _Readers) -> Checkpoint:
    try:
        description = _description(folder / "checkpoint.json")
        version = description["format_version"]
        if type(version) is not int or version not in _READ:
            raise CheckpointError(f"it has format {version}, this hvd_lm reads {', '.join(map(str, _READ))}")
        _check_own_sum(description)
        model = from_dict(ModelConfig, description["model"])
        optimizer = from_dict(OptimizerConfig, description["optimizer"])
        _check_files(folder, description["files"], model)
        weights = readers.weights(folder / WEIGHTS)
        check_weights(weights, model)
        state = OptimizerState(count(description["applied_steps"]), readers.moments(folder / MOMENTS))
        _check_moments(state.moments, weights)
        memory = readers.memory(folder / MEMORY) if MEMORY in description["files"] else {}
        _check_memory(memory, weights)
        lstm_state = load_file(folder / STATE)["lstm"]
        progress = _progress(description["progress"], _side_by_side(lstm_state) if version == 1 else lstm_state, model)
        tokenizer = tokenizers.load(folder / "tokenizer.json")
        if tokenizer.vocabulary_size != model.vocabulary_size:
            raise CheckpointError(f"{tokenizer.vocabulary_size} words for a model of {model.vocabulary_size}")
        return Checkpoint(count(description["step"]), model, optimizer, weights, state, tokenizer, progress, memory)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            raise CheckpointError(f"no checkpoint in {folder}: it does not exist") from error
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {why(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, CheckpointError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(f"the checkpoint {folder} cannot be used ({reason}): take another one") from error


def _description(path: Path) -> dict[str, Any]:
    if _size(path) > _LARGEST_DESCRIPTION:
        raise CheckpointError(f"{path.name} is larger than any that was written")
    description = json.loads(path.read_bytes())
    if not isinstance(description, dict):
        raise CheckpointError(f"{path.name} holds no object")
    return description


def _check_own_sum(description: dict[str, Any]) -> None:
    if description["checksum"] != checksum({key: value for key, value in description.items() if key != "checksum"}):
        raise CheckpointError("checkpoint.json was altered")


def _check_files(folder: Path, sums: dict[str, str], model: ModelConfig) -> None:
    """Raises CheckpointError naming the file that is not as it was written. Exactly the files of a checkpoint count."""
    if sorted(set(sums) - {MEMORY}) != sorted(FILES):
        raise CheckpointError(f"its files are not {', '.join(FILES)}")
    bytes_of_weights = 4 * sum(math.prod(parameter.shape) for parameter in parameters(model).values())
    for name in sums:
        path = folder / name
        if _size(path) > _SPARE + (_MOST_RANKS if name == MEMORY else 2) * bytes_of_weights:
            raise CheckpointError(f"{name} is larger than that of such a model")
        if sha256(path) != sums[name]:
            raise CheckpointError(f"{name} was altered or truncated")


def _size(path: Path) -> int:
    """Raises CheckpointError if it is no file, such as a pipe, which could be waited for without an end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path.name} is no file")
    return status.st_size


def _check_moments(moments: Mapping[str, Array], weights: Weights) -> None:
    """Each is of a weight. Which ones an optimizer wants, it says itself."""
    for name, moment in moments.items():
        weight = weights.get(name.partition("/")[2])
        if weight is None or moment.shape != weight.shape or moment.dtype != np.float32:
            raise CheckpointError(f"{name} is no moment of a weight")


def _check_memory(memory: Mapping[str, Array], weights: Weights) -> None:
    """Each is of a weight, and of a size that one may have. Which ones a compressor wants, it says itself."""
    for name, values in memory.items():
        weight = weights.get(name.partition("/")[2])
        if weight is None or values.dtype != np.float32 or not is_remembered(name, values.shape, weight.shape):
            raise CheckpointError(f"{name} is nothing that is remembered of a gradient")


def _side_by_side(state_L2SH: NDArray[np.float32]) -> NDArray[np.float32]:
    """The states of format 1 as [2, S, U]."""
    return np.concatenate(state_L2SH, axis=2)


def _progress(description: dict[str, Any], lstm_state_2SU: Array, model: ModelConfig) -> Progress:
    position = from_dict(Position, description["position"])
    loss_scale = None if description["loss_scale"] is None else from_dict(LossScale, description["loss_scale"])
    schedule = from_dict(Schedule, description["schedule"]) if description.get("schedule") else None
    averaging = from_dict(Averaging, description.get("averaging") or {})
    of_run = {"loss_scale": loss_scale, "schedule": schedule, "averaging": averaging}
    made = {**of_run, "position": position, "lstm_state_2SU": lstm_state_2SU}
    progress = from_dict(Progress, description | made)
    counts = (progress.epoch, progress.micro_batches, progress.tokens, progress.validations_since_best)
    for number in (*counts, averaging.since or 0, position.micro_batches, position.tokens or 0, *sum(position.segments, ())):
        count(number)
    if min(position.streams, position.sequence_length) < 1 or any(start > stop for start, stop in position.segments):
        raise CheckpointError("its position is none in a text")
    if loss_scale and not (0 < loss_scale.scale < math.inf and loss_scale.growth_steps >= 1):
        raise CheckpointError(f"its loss scale is {loss_scale.scale}")
    if schedule and not (0 <= schedule.step <= schedule.steps < math.inf and 0 <= schedule.factor <= 1):
        raise CheckpointError(f"its schedule is at {schedule.step} of {schedule.steps}, with a factor of {schedule.factor}")
    shape = (2, position.streams, state_size(model))
    if lstm_state_2SU.shape != shape or lstm_state_2SU.dtype != np.float32:
        raise CheckpointError(f"the state is {lstm_state_2SU.dtype} {list(lstm_state_2SU.shape)}, not float32 {list(shape)}")
    return progress


# --- names -----------------------------------------------------------------------------------------------


def folders(run: Path) -> list[Path]:
    """The complete checkpoints of `run`, oldest first. Raises CheckpointError if it cannot be looked into."""
    try:
        with os.scandir(run / FOLDER) as entries:
            found = [run / FOLDER / entry.name for entry in entries if is_name(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"cannot look for checkpoints in {run}: {why(error, run / FOLDER)}") from error
    return sorted(found, key=step_of)


def name_of(step: int) -> str:
    """Of the folder of a checkpoint."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The inverse of `name_of`."""
    return int(folder.name.removeprefix("step-"))


def best_of(run: Path) -> Path | None:
    """The checkpoint of `run` with the lowest validation loss, if one was noted."""
    try:
        return _named_by(run / FOLDER / BEST)
    except OSError:
        return None


_NAME = re.compile(r"step-\d{8,18}", re.ASCII)


def is_name(name: str) -> bool:
    """Whether `name_of` gives it to the checkpoint of a step."""
    return bool(_NAME.fullmatch(name))


def _is_place(path: Path) -> bool:
    return is_name(path.name) and path.absolute().parent.name == FOLDER


def _named_by(best: Path) -> Path | None:
    """The checkpoint beside `best` that this file, or link, names; None if it is neither. Raises OSError."""
    if best.name != BEST:
        return None
    if best.is_symlink():
        name = os.path.basename(os.readlink(best))
    elif best.is_file():
        with best.open("rb") as file:
            name = file.read(100).decode("utf-8", "replace").strip()
    else:
        return None
    return best.with_name(name) if is_name(name) else None
