"""Checkpoints that belong to no framework: canonical NumPy arrays in safetensors, everything else in JSON.

    <run>/checkpoints/step-00000020/
        weights.safetensors     canonical weights (hvd_lm.weights)
        optimizer.safetensors   <moment>/<weight name>
        checkpoint.json         format, step, model, optimizer, counters
        tokenizer.json          HF tokenizers

A folder appears under its name only when it is complete (written beside it, synced, renamed). Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hvd_lm.adapters.base import OptimizerState
from hvd_lm.config import ModelConfig, OptimizerConfig, from_dict, to_dict
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.tokenizer import Tokenizer
from hvd_lm.errors import CheckpointError
from hvd_lm.weights import Array, Weights, check_weights

FORMAT_VERSION = 1
FOLDER = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """What a run is after `step` optimizer steps."""

    step: int
    model: ModelConfig
    optimizer: OptimizerConfig
    weights: Weights
    optimizer_state: OptimizerState
    tokenizer: Tokenizer
    counters: dict[str, Any]
    """Tokens seen, loss scale, skipped steps and the like: plain JSON values."""


def save(checkpoint: Checkpoint, run: Path, *, keep: int) -> Path:
    """Write `checkpoint` into `run`, then remove all but the newest `keep`; returns its folder."""
    folder = run / FOLDER / f"step-{checkpoint.step:08d}"
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    save_file(_contiguous(checkpoint.weights), staging / "weights.safetensors")
    save_file(_contiguous(checkpoint.optimizer_state.moments), staging / "optimizer.safetensors")
    checkpoint.tokenizer.save(staging / "tokenizer.json")
    description = {
        "format_version": FORMAT_VERSION,
        "step": checkpoint.step,
        "applied_steps": checkpoint.optimizer_state.applied_steps,
        "model": to_dict(checkpoint.model),
        "optimizer": to_dict(checkpoint.optimizer),
        "counters": checkpoint.counters,
    }
    (staging / "checkpoint.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    for path in (*staging.iterdir(), staging):
        _sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)
    _sync(folder.parent)
    for old in _folders(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def load(path: Path) -> Checkpoint:
    """The checkpoint in `path`: the folder of one, or of a run (then its newest).

    Raises CheckpointError if there is none, or it is damaged or of another format.
    """
    folder = _find(path)
    try:
        description = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        version = description["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(f"it has format {version}, this hvd_lm reads {FORMAT_VERSION}")
        model = from_dict(ModelConfig, description["model"])
        optimizer = from_dict(OptimizerConfig, description["optimizer"])
        weights = load_file(folder / "weights.safetensors")
        check_weights(weights, model)
        state = OptimizerState(description["applied_steps"], load_file(folder / "optimizer.safetensors"))
        counters, step = description["counters"], description["step"]
        tokenizer = tokenizers.load(folder / "tokenizer.json")
        if tokenizer.vocabulary_size != model.vocabulary_size:
            raise CheckpointError(f"{tokenizer.vocabulary_size} words for a model of {model.vocabulary_size}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(
            f"the checkpoint {folder} cannot be used ({type(error).__name__}: {error}): take another one"
        ) from error
    return Checkpoint(step, model, optimizer, weights, state, tokenizer, counters)


def _folders(run: Path) -> list[Path]:
    """The complete checkpoints of `run`, oldest first."""
    return sorted((run / FOLDER).glob("step-*"), key=lambda folder: (len(folder.name), folder.name))


def _contiguous(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """safetensors writes memory as it lies, whatever the strides say."""
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _find(path: Path) -> Path:
    def candidates() -> Iterator[Path]:
        if (path / "checkpoint.json").is_file():
            yield path
        yield from reversed(_folders(path))

    folder = next(candidates(), None)
    if folder is None:
        raise CheckpointError(f"no checkpoint in {path}: give the --out folder of a training run, or one of its {FOLDER}/step-*")
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
