"""Windows whose gradients are compressed: each rank reports its own, the sum that is applied, and what it keeps. The last one is
not finite on one rank.

horovodrun -np 2 python compressed.py torch powersgd
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from common import build, checksum, report

import hvd_lm

WINDOWS, LENGTH, BATCH = 5, 6, 3
HOW = {
    "powersgd": hvd_lm.CommunicationConfig(compression="powersgd", powersgd_rank=2, powersgd_start_steps=1),
    "topk": hvd_lm.CommunicationConfig(compression="topk", topk_share=0.02, topk_momentum=0.5, topk_start_steps=2),
}
CLIP = 0.1


def main(framework: str, how: str, optimizer: Any = "adam") -> dict[str, Any]:
    update = hvd_lm.OptimizerConfig(optimizer, clip=CLIP)
    adapter = build(hvd_lm.adapter(framework, HOW[how], deterministic=True), update=update)
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
        before = adapter.weights()["embedding"]
        outcome = adapter.step(learning_rate=0.01, clip=CLIP, unscale=1.0)
        windows.append(
            {
                "own": {name: array.tolist() for name, array in own.items()},
                "applied": {name: array.tolist() for name, array in applied.items()},
                "memory": {name: array.tolist() for name, array in adapter.memory().items()},
                "norm": outcome.gradient_norm,
                "bytes": outcome.bytes_sent,
                "changed_rows": np.flatnonzero((adapter.weights()["embedding"] != before).any(axis=1)).tolist(),
                "was_applied": outcome.applied,
                "weights": checksum(adapter.weights()),
            }
        )
    return {"windows": windows, "firsts": {name: np.asarray(first).tolist() for name, first in adapter.firsts.items()}}


if __name__ == "__main__":
    report(main(sys.argv[1]))
