"""``python -m benchmarks.cells [K]``: PyTorch's LSTM layers beside each other by size, one thread; K micro-batches in one backward.

Seconds of the processor, not of the clock: what else the machine does counts less. ONEDNN_UNITS, in the adapter's stages, is
where they meet.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from hvd_lm.adapters.pytorch.memory import Weight
from hvd_lm.adapters.pytorch.stages.base import Stage
from hvd_lm.adapters.pytorch.stages.onednn_lstm import OneDnnLstm
from hvd_lm.adapters.pytorch.stages.torch_lstm import TorchLstm

SIZES = ((32, 4, 16), (64, 8, 32), (128, 8, 32), (200, 20, 35), (256, 8, 32), (512, 8, 32), (650, 20, 35), (1024, 8, 32))
"""Units, sequences, time steps."""
_SECONDS = 1.0


def layer(kind: type[OneDnnLstm | TorchLstm], units: int) -> tuple[Stage, list[Weight]]:
    weights = {
        "input_kernel": Weight(4 * units, units),
        "recurrent_kernel": Weight(4 * units, units),
        "bias": Weight(4 * units),
    }
    with torch.no_grad():
        for weight in weights.values():
            weight.normal_(0, 0.05)
    return kind(weights, units), list(weights.values())


def window(kind: type[OneDnnLstm | TorchLstm], units: int, batch: int, steps: int, count: int) -> Callable[[], None]:
    """Forward of `count` micro-batches and their backward, after an update of the weights."""
    stage, weights = layer(kind, units)
    inputs_KTBD, gradients_KTBH = torch.randn(2, count, steps, batch, units)

    def run() -> None:
        stage.weights_changed()
        state = (torch.zeros(batch, units), torch.zeros(batch, units))
        for index, inputs in enumerate(inputs_KTBD):
            _, after = stage.forward(inputs, state, None, keep=count - index)
            assert after is not None
            state = after
        stage.backward(gradients_KTBH, lambda _: None)
        for weight in weights:
            weight.grad = None

    return run


def best_seconds(action: Callable[[], None]) -> float:
    """Of as many calls as `_SECONDS` allow, at least two."""
    action()
    best, ends, calls = float("inf"), time.process_time() + _SECONDS, 0
    while time.process_time() < ends or calls < 2:
        began = time.process_time()
        action()
        best, calls = min(best, time.process_time() - began), calls + 1
    return best


def main(count: int = 1) -> None:
    torch.set_num_threads(1)
    print(f"{'units':>6} {'B':>3} {'T':>3} {'by hand, ms':>12} {'nn.LSTM, ms':>12} {'ratio':>6}")
    for units, batch, steps in SIZES:
        ours, theirs = (1e3 * best_seconds(window(kind, units, batch, steps, count)) for kind in (OneDnnLstm, TorchLstm))
        print(f"{units:>6} {batch:>3} {steps:>3} {ours:>12.2f} {theirs:>12.2f} {theirs / ours:>6.2f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
