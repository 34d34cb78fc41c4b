"""A grid of data x 2 ranks with a split vocabulary: rows are reduced inside each data group, all else over all ranks.

horovodrun -np 4 python process_sets.py torch
"""

from __future__ import annotations

import sys

import numpy as np
from common import build, checksum, report

import hvd_lm


def main(framework: str) -> dict[str, float]:
    adapter = hvd_lm.adapter(framework, topology=hvd_lm.TopologyConfig(model_parallel=2))
    build(adapter)
    topology = adapter.job.topology
    if topology.data_rank != 0:
        for name, rows in adapter.weights().items():
            adapter.set_rows(name, adapter.shares[name].rows.start, rows * 0)
    adapter.broadcast_state()  # so the other data ranks get the weights back, from the first rank that holds the same rows
    generator = np.random.default_rng(100)
    inputs, targets = generator.integers(0, 50, (2, topology.readers, 6, 3), dtype=np.int32)
    mine = topology.reader
    adapter.accumulate(inputs[mine], targets[mine], adapter.zero_state(3), weight=1 / targets.size, last=True)
    outcome = adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0)
    total = adapter.job.sum(np.array([float(topology.rank)]), "data")[0]
    adapter.job.broadcast("done")  # a rank that leaves ends Horovod for the group that is not yet ready
    weights = adapter.weights()
    common = {name: array for name, array in weights.items() if name.startswith("lstm.")}
    return {
        "loss": outcome.loss_sum,
        "norm": outcome.gradient_norm,
        "common": checksum(common),
        "rows": checksum({name: array for name, array in weights.items() if name not in common}),
        "ranks": total,
    }


if __name__ == "__main__":
    report(main(sys.argv[1]))
