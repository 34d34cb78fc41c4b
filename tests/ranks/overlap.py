"""In which order three micro-batches go backward together and their gradients leave; PyTorch.

horovodrun -np 2 python overlap.py
"""

from __future__ import annotations

import numpy as np
from common import build, report
from torch import Tensor, nn

import hvd_lm
from hvd_lm.adapters.pytorch import stages
from hvd_lm.adapters.pytorch.reducer import GradientReducer
from hvd_lm.adapters.pytorch.stages.base import Complete
from hvd_lm.adapters.pytorch.stages.onednn_lstm import OneDnnLstm


def main() -> list[str]:
    stages.ONEDNN_UNITS = 1
    adapter = build(hvd_lm.adapter("torch"))
    happened: list[str] = []
    start, backward = GradientReducer.start, OneDnnLstm.backward

    def noted_start(reducer: GradientReducer, parameter: nn.Parameter) -> None:
        happened.append(reducer._names[parameter])
        start(reducer, parameter)

    def noted_backward(layer: OneDnnLstm, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        happened.append(f"backward of {len(gradients_KTBH)}")
        by_inputs = backward(layer, gradients_KTBH, complete)
        happened.append("done")
        return by_inputs

    GradientReducer.start, OneDnnLstm.backward = noted_start, noted_backward  # type: ignore[method-assign]
    inputs, targets = np.random.default_rng(adapter.job.topology.rank).integers(0, 50, (2, 6, 3), dtype=np.int32)
    state = adapter.zero_state(3)
    for micro_batch in range(3):
        last = micro_batch == 2
        state = adapter.accumulate(inputs, targets, state, weight=1 / 108, last=last, defer=2 - micro_batch)
    adapter.step(learning_rate=0.01, clip=None, unscale=1.0)
    return happened


if __name__ == "__main__":
    report(main())
