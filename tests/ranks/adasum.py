"""One window reduced with Adasum; each rank reports its own gradient and the combined one.

horovodrun -np 2 --mpi python adasum.py torch
"""

from __future__ import annotations

import sys

import numpy as np
from common import build, report

import hvd_lm


def main(framework: str) -> dict[str, list[float]]:
    adapter = build(hvd_lm.adapter(framework, hvd_lm.CommunicationConfig(reduction="adasum")))
    inputs, targets = np.random.default_rng(adapter.job.topology.rank).integers(0, 50, (2, 6, 3), dtype=np.int32)
    adapter.accumulate(inputs, targets, adapter.zero_state(3), weight=1 / targets.size, last=False)
    own = adapter.gradients()["lstm.0.recurrent_kernel"]
    nothing = np.full_like(targets, -1)
    adapter.accumulate(inputs, nothing, adapter.zero_state(3), weight=1.0, last=True)
    combined = adapter.gradients()["lstm.0.recurrent_kernel"]
    adapter.step(learning_rate=0.01, clip=None, unscale=1.0)
    return {"own": own.ravel().tolist(), "combined": combined.ravel().tolist()}


if __name__ == "__main__":
    report(main(sys.argv[1]))
