"""Windows reduced by PowerSGD: each rank reports its own gradients, the sum that is applied, and what it keeps. The last one is not
finite on one rank.

horovodrun -np 2 python compressed.py torch
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from common import build, checksum, report

import hvd_lm

WINDOWS, LENGTH, BATCH, RANK = 5, 6, 3, 2
EXACT = 1
"""Steps at the beginning."""


def main(framework: str) -> dict[str, Any]:
    communication = hvd_lm.CommunicationConfig(compression="powersgd", powersgd_rank=RANK, powersgd_start_steps=EXACT)
    adapter = build(hvd_lm.adapter(framework, communication, deterministic=True))
    rank = adapter.job.topology.rank
    generator = np.random.default_rng(rank)
    windows = []
    for window in range(WINDOWS):
        # Few tokens: some rows of the embedding are touched by one rank, some by nobody.
        inputs, targets = generator.integers(0, 20 + 5 * rank, (2, LENGTH, BATCH), dtype=np.int32)
        state = adapter.zero_state(BATCH)
        weight = np.inf if window == WINDOWS - 1 and rank == 1 else (rank + 1) / targets.size
        adapter.accumulate(inputs, targets, state, weight=weight, last=False)
        own = adapter.gradients()
        adapter.accumulate(inputs, np.full_like(targets, -1), state, weight=1.0, last=True)
        applied = adapter.gradients()
        outcome = adapter.step(learning_rate=0.01, clip=0.5, unscale=1.0)
        windows.append(
            {
                "own": {name: array.tolist() for name, array in own.items()},
                "applied": {name: array.tolist() for name, array in applied.items()},
                "memory": {name: array.tolist() for name, array in adapter.memory().items()},
                "norm": outcome.gradient_norm,
                "bytes": outcome.bytes_sent,
                "was_applied": outcome.applied,
                "weights": checksum(adapter.weights()),
            }
        )
    return {"windows": windows, "firsts": {name: first.tolist() for name, first in adapter.firsts.items()}}


if __name__ == "__main__":
    report(main(sys.argv[1]))
