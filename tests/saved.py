"""A small checkpoint with every kind of content, to save and to spoil."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import OptimizerState
from hvd_lm.checkpoint import Checkpoint, Progress
from hvd_lm.checkpoint.files import checksum
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.data.sources import Position
from hvd_lm.data.tokenizer import train_word_level
from hvd_lm.errors import CheckpointError
from hvd_lm.model.weights import initial_weights

FILES = ["weights.safetensors", "optimizer.safetensors", "state.safetensors", "checkpoint.json", "tokenizer.json"]
TEXT = "the cat sat\non the mat\n"


def progress(model: ModelConfig, **changes: Any) -> Progress:
    """Of a run over 40 tokens in 3 streams, with values that rounding would change."""
    lstm_state = np.random.default_rng(3).standard_normal((2, 3, sum(model.units))).astype(np.float32)
    position = Position(segments=((3, 20), (25, 40)), streams=3, sequence_length=4, micro_batches=2)
    made = Progress(1, position, micro_batches=7, tokens=2**40, seconds=0.1, text="ab12", lstm_state_2SU=lstm_state)
    return replace(made, **changes)


def example(step: int = 20, **changes: Any) -> Checkpoint:
    """A small checkpoint with every kind of content; the moments are random, with values that rounding would change."""
    tokenizer = train_word_level(TEXT, None)
    model = ModelConfig(tokenizer.vocabulary_size, embedding_size=3, hidden_size=(4, 5), dropout=0.1)
    weights = initial_weights(model, seed=step)
    generator = np.random.default_rng(step)
    moments = {
        f"{moment}/{name}": generator.standard_normal(array.shape).astype(np.float32) * np.float32(1e-30)
        for moment in ("first", "second")
        for name, array in weights.items()
    }
    optimizer = OptimizerConfig(learning_rate=3e-4, clip=None, beta1=0.85, epsilon=1e-7)
    state = OptimizerState(applied_steps=step - 1, moments=moments)
    return Checkpoint(step, model, optimizer, weights, state, tokenizer, progress(model, **changes))


def refusal(path: Path) -> str:
    """The message of the CheckpointError that loading `path` gives: one line."""
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def reseal(folder: Path, **changes: Any) -> None:
    """Change the description, and make all checksums fit what is there: damage that only a look at the content finds."""
    path = folder / "checkpoint.json"
    description = json.loads(path.read_text(encoding="utf-8")) | changes
    description.pop("checksum", None)
    if "files" in description:
        description["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in description["files"]}
    description["checksum"] = checksum(description)
    path.write_text(json.dumps(description), encoding="utf-8")
