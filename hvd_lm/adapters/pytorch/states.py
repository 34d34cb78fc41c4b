"""The state of a model: of each stage two tensors, one row for a sequence; what a stage without a state has is 0 columns wide.

An attention's grows with what it reads: it is not carried from text to text, nor to NumPy.

Shapes: B sequences, U units of all stages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvd_lm.adapters.pytorch.memory import to_numpy
from hvd_lm.adapters.pytorch.stages import LayerState, Stage

States = Sequence[LayerState]


def zero(stages: Sequence[Stage], batch_size: int, device: torch.device) -> States:
    """At the beginning of a text."""

    def zeros(units: int) -> Tensor:
        return torch.zeros(batch_size, units, device=device)

    return [(zeros(stage.units), zeros(stage.units)) for stage in stages]


def select(states: States, sequences: Sequence[int]) -> States:
    """Those of these sequences, in this order; one may come several times."""
    return [(h[sequences], c[sequences]) for h, c in states]


def numpy_of(states: States, stages: Sequence[Stage]) -> NDArray[np.float32]:
    """``float32 [2, B, U]``"""
    carried = [tuple(to_numpy(tensor[:, : stage.units]) for tensor in of) for stage, of in zip(stages, states, strict=True)]
    return np.stack([np.concatenate(kind, axis=1) for kind in zip(*carried, strict=True)])


def of_numpy(states_2BU: NDArray[np.float32], stages: Sequence[Stage], device: torch.device) -> States:
    """The inverse."""
    widths = [stage.units for stage in stages]
    h, c = (torch.split(kind, widths, dim=1) for kind in torch.tensor(states_2BU, device=device))
    return list(zip(h, c, strict=True))
