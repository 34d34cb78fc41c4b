"""The squared norm of each rank's gradient of its first micro-batch, the mean over its targets, before anything is reduced.

horovodrun -np 2 python own_squares.py torch FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from common import report

import hvd_lm
from hvd_lm.config import RunConfig, with_vocabulary_size
from hvd_lm.data.texts import read_texts
from hvd_lm.training.dataset import TextDataset
from hvd_lm.training.leg import Leg
from hvd_lm.training.snapshot import enter


def main(framework: str, out: str) -> float:
    config = RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=Path(out),
        threads=1,
        deterministic=True,
        model=hvd_lm.ModelConfig(vocabulary_size=1000, embedding_size=24, hidden_size=32),
        data=hvd_lm.DataConfig(batch_size=4, sequence_length=16),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=2),
    )
    adapter = hvd_lm.adapter(framework, config.communication, threads=1)
    texts = read_texts(config.data, 1000, adapter.job.topology.readers)
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    adapter.build(config.model, config.optimizer)
    leg = Leg(config, TextDataset(texts, config.seed), adapter, *enter(adapter, None, config.seed))
    batch, _ = leg._cursor.read()
    state = adapter.zero_state(4)
    adapter.accumulate(batch.inputs_TB, batch.targets_TB, state, weight=1 / batch.targets_TB.size, last=False)
    return sum(float(np.vdot(gradient, gradient)) for gradient in adapter.gradients().values())


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
