"""The multiplicative LSTM (Krause et al. 2016, arXiv:1609.07959, equations 16 to 20): recurrent weights that depend on the input.

    m = (W_mx x) * (W_mh h)        takes the place of h in the gates of an LSTM

The output gate is outside of tanh, as in an LSTM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_lm.adapters.pytorch.stages.base import LayerState
from hvd_lm.adapters.pytorch.stages.differentiated import DifferentiatedStage, Operands


class MultiplicativeLstm(DifferentiatedStage):
    """A layer; gates in the order i, f, g, o."""

    def compute(self, inputs_TBD: Tensor, state: LayerState, weights: Operands) -> tuple[Tensor, LayerState]:
        h, c = state
        before_TBG = weights.product(inputs_TBD, "input_kernel") + weights["bias"]
        factors_TBH = weights.product(inputs_TBD, "multiplicative_input_kernel")
        outputs = []
        for before, factor in zip(before_TBG, factors_TBH, strict=True):
            m = factor * weights.product(h, "multiplicative_recurrent_kernel")
            i, f, g, o = (before + weights.product(m, "recurrent_kernel")).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)
