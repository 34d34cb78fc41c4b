"""The embedding: rows of a table, looked up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvd_lm.adapters.pytorch.memory import gradient_by_rows
from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage


class Lookup(Stage):
    """Tokens [T, B] -> their rows of `table_VE`, [T, B, E]."""

    def __init__(self, table_VE: nn.Parameter) -> None:
        self.table = table_VE
        self.touched: Tensor
        """Rows of the table that the last forward read."""
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        self.touched = inputs
        if keep:
            self._kept.append(inputs)
        return functional.embedding(inputs, self.table), state

    @torch.no_grad()
    def backward(self, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        """Nothing comes out below: tokens have no gradient."""
        total = gradient_by_rows(self.table)
        for inputs_TB, gradient_TBE in zip(self._kept, gradients_KTBH, strict=True):
            total.index_add_(0, inputs_TB.flatten(), gradient_TBE.flatten(0, 1))
        self._kept.clear()
        complete(self.table)
        return gradients_KTBH.new_empty(0)
