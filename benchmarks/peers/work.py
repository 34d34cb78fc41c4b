"""What the scripts share, so that each shows only its own way of training: the work, its batches, and the clock."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import workload
from hvd_lm.data.streams import Streams
from hvd_lm.model.weights import StageWeights, initial_weights, stage_weights

FOLDER = Path(sys.argv[1])
"""Holds the work; results go where BENCH_RESULTS says."""
WORK, _TOKENS, _FIRST_INPUT = workload.read(FOLDER)


def weights() -> list[StageWeights]:
    """The initial weights, the same for every peer: of the embedding, the LSTM layers and the output."""
    return stage_weights(initial_weights(WORK.model, WORK.seed), WORK.model)


def batches(rank: int = 0, size: int = 1) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Inputs and targets [T, B] of rank `rank` of `size`, micro-batch by micro-batch."""
    streams = Streams(
        _TOKENS,
        first_input=_FIRST_INPUT,
        batch_size=WORK.batch_size,
        sequence_length=WORK.sequence_length,
        data_rank=rank,
        data_size=size,
    )
    for index in range(streams.micro_batches):
        batch = streams.micro_batch(index)
        yield batch.inputs_TB.astype(np.int64), batch.targets_TB.astype(np.int64)


class Clock:
    """Seconds and mean loss of each window of this rank; starts when made."""

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._marks = [time.perf_counter()]
        self._losses: list[float] = []

    def windows(self) -> Iterator[int]:
        """Count the windows; what follows the last one is not timed."""
        for window in range(WORK.warmup + WORK.windows):
            yield window
            assert len(self._losses) == window + 1, "call end_window() at the end of each window"
        self._save()

    def end_window(self, loss: float) -> None:
        """`loss`: mean of this rank over the window, in nats per token."""
        self._marks.append(time.perf_counter())
        self._losses.append(loss)

    def _save(self) -> None:
        result = {"seconds": np.diff(self._marks).tolist(), "losses": self._losses}
        Path(os.environ["BENCH_RESULTS"], f"rank-{self._rank}.json").write_text(json.dumps(result), encoding="utf-8")
