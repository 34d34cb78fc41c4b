"""Optimizer steps on the same tokens, whatever the grid of ranks: each reader takes its sequences of the batch.

horovodrun -np 4 python grid.py torch '{"model_parallel": 2}'

The second argument holds the settings of model, optimizer, topology and communication, flat; `steps`, `sequences` of all,
what the embedding begins multiplied by (`embedding_factor`), and
`logits_together`, which is for tests only.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from common import report

import hvd_lm.data.sources
from hvd_lm.config import CommunicationConfig, ModelConfig, OptimizerConfig, TopologyConfig
from hvd_lm.model import cost
from hvd_lm.model.candidates import candidates
from hvd_lm.model.noise import dropout_masks, dropout_widths, step_noise, weight_masks
from hvd_lm.model.weights import initial_rows

LENGTH, WHOLE_WINDOW, LAST_WINDOW = 4, 4, 2


def main(framework: str, settings: str) -> dict[str, Any]:
    given = json.loads(settings)
    cost.LOGITS_TOGETHER = given.pop("logits_together", _LOGITS_TOGETHER)
    steps, sequences, factor = given.pop("steps", 30), given.pop("sequences", 12), given.pop("embedding_factor", 1.0)
    sections = {kind: {k: given.pop(k) for k in list(given) if k in kind.__dataclass_fields__} for kind in _SECTIONS}
    assert not given, given
    model = ModelConfig(**_MODEL | sections[ModelConfig])
    communication = CommunicationConfig(**sections[CommunicationConfig])
    adapter = hvd_lm.adapter(framework, communication, TopologyConfig(**sections[TopologyConfig]), deterministic=True)
    adapter.build(model, OptimizerConfig(**sections[OptimizerConfig]))
    adapter.load_weights(initial_rows(model, seed=4))
    if held := adapter.shares["embedding"].rows:
        adapter.set_rows("embedding", held.start, factor * adapter.weights()["embedding"])
    topology, vocabulary = adapter.job.topology, model.vocabulary_size or 0
    batch = sequences // topology.readers
    mine = slice(topology.reader * batch, (topology.reader + 1) * batch)
    generator = np.random.default_rng(0)
    state, results, beyond, micro_batch = adapter.zero_state(batch), [], [], 0
    scale = 1024.0 if communication.compression == "fp16" else 1.0
    for step in range(steps):
        count = LAST_WINDOW if step % 3 == 2 else WHOLE_WINDOW
        inputs = generator.integers(0, vocabulary, (count, LENGTH, sequences), dtype=np.int32)
        # A language that can be learnt, so that the losses move; some targets do not count.
        targets = ((3 * inputs + generator.integers(0, 2, inputs.shape)) % vocabulary).astype(np.int32)
        targets[-1, -1, :2] = hvd_lm.data.sources.IGNORED
        counted = int((targets >= 0).sum())
        noise = step_noise(model, step=step, seed=9)
        held = [name for name, share in adapter.shares.items() if share.rows]
        adapter.drop_weights(weight_masks(model, held, step=step, seed=9))
        for index in range(count):
            masks = dropout_masks(
                model.dropout_rates,
                widths=dropout_widths(model),
                sequence_length=LENGTH,
                stream_ids=range(mine.start, mine.stop),
                micro_batch=micro_batch,
                seed=9,
                locked=model.locked_dropout,
            )
            of_micro_batch = candidates(model, micro_batch=micro_batch, seed=9)
            micro_batch += 1
            state = adapter.accumulate(
                np.ascontiguousarray(inputs[index, :, mine]),
                np.ascontiguousarray(targets[index, :, mine]),
                state,
                weight=scale / counted,
                last=index == count - 1,
                defer=(count - 1 - index) % 2,
                dropout_masks=noise.masks(np.ascontiguousarray(inputs[index, :, mine]), masks),
                candidates=of_micro_batch,
            )
        outcome = adapter.step(learning_rate=0.03, clip=0.2, unscale=1 / scale)
        results.append((outcome.loss_sum / counted, outcome.gradient_norm))
        beyond.append([outcome.ranks_beyond_halves, outcome.applied])
    return {
        "figures": results,
        "beyond": beyond,
        "linked": sorted(adapter.job.links),
        "rows": {name: [share.rows.start, share.rows.stop] for name, share in adapter.shares.items()},
    }


_LOGITS_TOGETHER = cost.LOGITS_TOGETHER
_SECTIONS = (ModelConfig, OptimizerConfig, CommunicationConfig, TopologyConfig)
_MODEL = {"vocabulary_size": 51, "embedding_size": 12, "hidden_size": 16, "layers": 2}

if __name__ == "__main__":
    report(main(*sys.argv[1:]))
