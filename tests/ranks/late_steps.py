"""Steps that apply gradients late: each reports weights, norm and bytes; and what the gradients are, by a model that is never late.

horovodrun -np 2 python late_steps.py torch
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from common import MODEL, as_lists, build, report

import hvd_lm
from hvd_lm.config import CommunicationConfig, OptimizerConfig

CAUGHT_UP = (3, 5)
"""Steps after which nothing is left on its way."""
STEPS, LENGTH, BATCH = 6, 6, 3
CLIP, MOMENTUM = 0.2, 0.9


def rate(step: int) -> float:
    return 0.5 / step


def main(framework: str) -> dict[str, Any]:
    sgd = OptimizerConfig(optimizer="sgd", momentum=MOMENTUM)
    late, plain = (
        hvd_lm.adapter(framework, CommunicationConfig(late_gradients=late), deterministic=True) for late in (True, False)
    )
    build(late, MODEL, sgd)
    topology = late.job.topology
    generator = np.random.default_rng(topology.rank)
    windows = [generator.integers(0, 50, (2, LENGTH, BATCH), dtype=np.int32) for _ in range(STEPS)]
    weight = 1 / (topology.readers * windows[0][1].size)
    steps: list[dict[str, Any]] = []
    before = []
    for step, (inputs, targets) in enumerate(windows, 1):
        before.append(late.weights())
        late.accumulate(inputs, targets, late.zero_state(BATCH), weight=weight, last=True)
        outcome = late.step(learning_rate=rate(step), clip=CLIP, unscale=1.0)
        made: dict[str, Any] = {"norm": outcome.gradient_norm, "bytes": outcome.bytes_sent, "weights": as_lists(late.weights())}
        if step in CAUGHT_UP:
            caught_up = late.catch_up()
            assert caught_up is not None
            made |= {"caught_up_norm": caught_up.norm, "caught_up": as_lists(late.weights())}
            assert late.catch_up() is None
        steps.append(made)
    late.catch_up()  # its reductions have the names of the other model's
    build(plain, MODEL, sgd)
    for made, weights, (inputs, targets) in zip(steps, before, windows, strict=True):
        plain.load_weights(weights)
        plain.accumulate(inputs, targets, plain.zero_state(BATCH), weight=weight, last=True)
        made["gradients"] = as_lists(plain.gradients())
        made["plain_bytes"] = plain.step(learning_rate=0.0, clip=None, unscale=1.0).bytes_sent
    return {"before": as_lists(before[0]), "steps": steps}


if __name__ == "__main__":
    report(main(sys.argv[1]))
