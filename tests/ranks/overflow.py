"""Three windows with fp16 on the wire; in the second one the gradient of the last rank alone overflows.

horovodrun -np 2 python overflow.py torch
"""

from __future__ import annotations

import sys

import numpy as np
from common import build, checksum, report

import hvd_lm


def main(framework: str) -> list[dict[str, object]]:
    adapter = build(hvd_lm.adapter(framework, hvd_lm.CommunicationConfig(compression="fp16")))
    generator = np.random.default_rng(adapter.job.topology.rank)
    scale, results = 1024.0, []
    for window in range(3):
        for micro_batch in range(2):
            inputs, targets = generator.integers(0, 50, (2, 6, 3), dtype=np.int32)
            injected = window == 1 and adapter.job.topology.rank == adapter.job.topology.size - 1
            weight = scale / (targets.size * 2 * adapter.job.topology.size) * (1e12 if injected else 1.0)
            adapter.accumulate(inputs, targets, adapter.zero_state(3), weight=weight, last=micro_batch == 1)
        outcome = adapter.step(learning_rate=0.01, clip=1.0, unscale=1 / scale)
        results.append(
            {
                "applied": outcome.applied,
                "finite_loss": bool(np.isfinite(outcome.loss_sum)),
                "weights": checksum(adapter.weights()),
                "moments": checksum(adapter.optimizer_state().moments),
                "applied_steps": adapter.optimizer_state().applied_steps,
            }
        )
    return results


if __name__ == "__main__":
    report(main(sys.argv[1]))
