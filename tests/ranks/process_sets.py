"""A grid of data x 2 ranks: gradients are reduced inside each data group, by Horovod process sets.

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
        adapter.load_weights({name: value * 0 for name, value in adapter.weights().items()})
    adapter.broadcast_state()  # so the other data ranks get the weights back, from their own group's first rank
    # Each data group has a text of its own; the micro-batch of a data rank is its share of it.
    generator = np.random.default_rng(100 + topology.model_rank)
    inputs, targets = generator.integers(0, 50, (2, topology.data_size, 6, 3), dtype=np.int32)
    mine = topology.data_rank
    adapter.accumulate(inputs[mine], targets[mine], adapter.zero_state(3), weight=1 / targets.size, last=True)
    outcome = adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0)
    total = adapter.job.sum(np.array([float(topology.rank)]))[0]
    adapter.job.broadcast("done")  # a rank that leaves ends Horovod for the group that is not yet ready
    return {"loss": outcome.loss_sum, "norm": outcome.gradient_norm, "weights": checksum(adapter.weights()), "ranks": total}


if __name__ == "__main__":
    report(main(sys.argv[1]))
