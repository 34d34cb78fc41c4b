"""20 optimizer steps on the same tokens, as N micro-batches on R ranks with N * R = 8, and a short last window of 4.

python same_tokens.py torch                 N = 8, R = 1
horovodrun -np 2 python same_tokens.py torch     N = 4, R = 2

The second argument holds settings of the model. Noise is that of the micro-batch, and of the step, on whichever rank.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
from common import MODEL, build, report

import hvd_lm
from hvd_lm.model.noise import step_noise, weight_masks
from hvd_lm.training.cursor import dropout_noise

STEPS, BATCH, LENGTH, WHOLE_WINDOW, LAST_WINDOW = 20, 3, 6, 8, 4


def main(framework: str, settings: str = "{}") -> list[tuple[float, float]]:
    model = replace(MODEL, **json.loads(settings))
    adapter = build(hvd_lm.adapter(framework), model)
    of_activations = dropout_noise(model, seed=3)
    rank, ranks = adapter.job.topology.data_rank, adapter.job.topology.data_size
    generator = np.random.default_rng(0)
    results = []
    for step in range(STEPS):
        # A language that can be learnt, so that the losses move: each token is followed by one of two others.
        count = LAST_WINDOW if step == STEPS - 1 else WHOLE_WINDOW
        inputs = generator.integers(0, 50, (count, LENGTH, BATCH), dtype=np.int32)
        targets = ((3 * inputs + generator.integers(0, 2, inputs.shape)) % 50).astype(np.int32)
        mine = range(rank * count // ranks, (rank + 1) * count // ranks)
        noise = step_noise(model, step=step, seed=3)
        adapter.drop_weights(weight_masks(model, adapter.shares, step=step, seed=3))
        for index in mine:
            masks = of_activations(stream_ids=range(BATCH), micro_batch=step * WHOLE_WINDOW + index, sequence_length=LENGTH)
            adapter.accumulate(
                inputs[index],
                targets[index],
                adapter.zero_state(BATCH),
                weight=1 / targets.size,
                last=index == mine[-1],
                dropout_masks=noise.masks(inputs[index], masks),
            )
        outcome = adapter.step(learning_rate=0.03, clip=0.1, unscale=1.0)
        results.append((outcome.loss_sum / targets.size, outcome.gradient_norm))
    return results


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
