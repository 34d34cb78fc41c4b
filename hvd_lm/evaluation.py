"""Perplexity of a model on a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters import adapter_class
from hvd_lm.adapters.base import Adapter
from hvd_lm.config import Framework
from hvd_lm.data.corpus import read_text
from hvd_lm.data.streams import Streams
from hvd_lm.errors import DataError


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure the perplexity of a checkpoint on texts, alone or on every rank of a horovodrun job."""

    checkpoint: Path
    """Folder of a training run (its newest checkpoint), or of one checkpoint."""
    data: tuple[Path, ...] = ()
    """UTF-8 texts, one after the other. None: the embedded corpus."""
    framework: Framework = "torch"
    """Which framework computes; any can read any checkpoint."""
    batch_size: int = 1
    """Streams per rank that the text is cut into; with one stream on one rank no context is lost at a cut."""
    sequence_length: int = 64
    """Tokens computed at once; the state is carried, so this does not change the result."""
    threads: int | None = None
    """Compute threads of a rank. Unless given: the cores of the machine shared by its ranks."""


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy of a text under the model."""

    loss: float
    """Mean cross-entropy, nats per token."""
    tokens: int
    """Targets that were predicted, on all ranks."""
    unknown_share: float = 0.0
    """Share of the tokens that the vocabulary lacks."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is beyond a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def evaluate_streams(adapter: Adapter, streams: Streams) -> Evaluation:
    """Loss over all streams of all ranks, state carried within each stream. Collective."""
    state = adapter.zero_state(streams.batch_size)
    total = 0.0
    for index in range(streams.micro_batches):
        batch = streams.micro_batch(index)
        loss_sum, state = adapter.evaluate(batch.inputs_TB, batch.targets_TB, state)
        total += loss_sum
    tokens = len(streams.tokens)
    return Evaluation(float(adapter.all_reduce(np.array([total]))[0]) / tokens, tokens)


def evaluate(
    checkpoint: Path | str,
    data: Sequence[Path | str] = (),
    *,
    framework: str = "torch",
    batch_size: int = 1,
    sequence_length: int = 64,
    threads: int | None = None,
) -> Evaluation:
    """Perplexity of `checkpoint` on the texts `data` (the embedded corpus if none). Collective.

    Raises CheckpointError, DataError or FrameworkError, each with what to do.
    """
    loaded = checkpoints.load(Path(checkpoint))
    tokens = loaded.tokenizer.encode(read_text([Path(path) for path in data]))
    if not len(tokens):
        raise DataError("the text holds no token")
    adapter = adapter_class(framework)(threads=threads)
    adapter.build(loaded.model, loaded.optimizer)
    adapter.load_weights(loaded.weights)
    streams = Streams(
        tokens,
        first_input=loaded.tokenizer.end_of_line_id,
        batch_size=batch_size,
        sequence_length=sequence_length,
        data_rank=adapter.topology.data_rank,
        data_size=adapter.topology.data_size,
    )
    result = evaluate_streams(adapter, streams)
    unknown = float(np.mean(tokens == loaded.tokenizer.unknown_id))
    return Evaluation(result.loss, result.tokens, unknown)
