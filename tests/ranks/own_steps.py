"""Steps that a rank makes by itself, and the mean of the weights after them: each reports its gradients, and what came of them.

horovodrun -np 2 python own_steps.py torch 2 1
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import numpy as np
from common import MODEL, as_lists, report

import hvd_lm
from hvd_lm.config import OptimizerConfig
from hvd_lm.model.weights import initial_weights
from hvd_lm.training import local_steps
from hvd_lm.training.local_steps import LocalSteps

STEPS, TOGETHER, LENGTH, BATCH = 7, 2, 6, 3
RATE, CLIP, MOMENTUM = 0.5, 0.2, 0.9


def main(framework: str, every: str, told: str) -> list[dict[str, Any]]:
    """Weights are averaged after `every` steps; ranks tell each other after as many as are `told`, once that is known."""
    with patch.object(local_steps, "told_every", lambda _, __, most, ___: min(most, int(told))):
        return made(framework, int(every))


def made(framework: str, every: int) -> list[dict[str, Any]]:
    communication = hvd_lm.CommunicationConfig(reduce_every=every, reduce_start_steps=TOGETHER)
    adapter = hvd_lm.adapter(framework, communication, deterministic=True)
    adapter.build(MODEL, OptimizerConfig(optimizer="sgd", momentum=MOMENTUM))
    adapter.load_weights(initial_weights(MODEL, seed=4))
    local, readers = LocalSteps(adapter), adapter.job.topology.readers
    generator = np.random.default_rng(adapter.job.topology.rank)
    steps = []
    for step in range(1, STEPS + 1):
        inputs, targets = generator.integers(0, 50, (2, LENGTH, BATCH), dtype=np.int32)
        is_own = local.begin(step, wanted=step == STEPS)
        adapter.accumulate(inputs, targets, adapter.zero_state(BATCH), weight=1 / (readers * targets.size), last=True)
        gradients = adapter.gradients()
        outcome = adapter.step(learning_rate=RATE, clip=CLIP, unscale=readers if is_own else 1)
        tells, after = local.hear(step, outcome), adapter.weights()
        sent = local.average(step, wanted=step == STEPS)
        steps.append(
            {
                "is_own": is_own,
                "gradients": as_lists(gradients),
                "norm": outcome.gradient_norm,
                "gradient_bytes": outcome.bytes_sent,
                "tells": tells,
                "made": as_lists(after),
                "averaged": as_lists(adapter.weights()),
                "weight_bytes": sent,
            }
        )
    local.average_all(STEPS)
    steps[-1]["moments"] = as_lists(dict(adapter.optimizer_state().moments))
    return steps


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
