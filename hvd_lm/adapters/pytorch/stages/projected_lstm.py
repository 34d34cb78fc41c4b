"""The LSTM with a projection (Sak et al. 2014, arXiv:1402.1128, equations 7 to 13, without peepholes and the non-recurrent units).

    h = W_p (o * tanh(c))

What recurs and goes up has P columns, the cells have H. Its state (h, c) is H wide for both: h fills the first P columns of its
part, the others are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hvd_lm.adapters.pytorch.stages.base import LayerState
from hvd_lm.adapters.pytorch.stages.differentiated import DifferentiatedStage, Operands


class ProjectedLstm(DifferentiatedStage):
    """A layer; gates in the order i, f, g, o."""

    def compute(self, inputs_TBD: Tensor, state: LayerState, weights: Operands) -> tuple[Tensor, LayerState]:
        h_BH, c = state
        projected = weights["projection_kernel"].shape[0]
        h = h_BH[:, :projected]
        before_TBG = weights.product(inputs_TBD, "input_kernel") + weights["bias"]
        outputs = []
        for before in before_TBG:
            i, f, g, o = (before + weights.product(h, "recurrent_kernel")).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = weights.product(torch.sigmoid(o) * torch.tanh(c), "projection_kernel")
            outputs.append(h)
        return torch.stack(outputs), (functional.pad(h, (0, self.units - projected)), c)
