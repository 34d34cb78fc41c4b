"""The embedding, its rows divided over the ranks of a model group: each asks the others for those that its tokens name.

A word that occurs several times is asked for, and told of, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hvd_lm.adapters.pytorch.memory import gradient_by_rows
from hvd_lm.adapters.pytorch.model_group import ModelGroup
from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState
from hvd_lm.adapters.pytorch.stages.lookup import Lookup


class _Asked(NamedTuple):
    """Which rows the ranks want of each other."""

    inverse: Tensor
    """For each of this rank's tokens its place among its words, which are ascending."""
    of_others: list[int]
    """How many of its words each rank holds."""
    rows: Tensor
    """Of this rank's table, that the ranks named, one rank after the other."""
    by_others: list[int]
    """How many each of them named."""


class SplitLookup(Lookup):
    """Tokens [T, B] -> their rows, [T, B, E], of a table of which `table_RE` is this rank's part."""

    def __init__(self, table_RE: nn.Parameter, parts: Sequence[range], group: ModelGroup) -> None:
        """`parts`: the rows of each rank of the group."""
        super().__init__(table_RE)
        self._parts, self._group = parts, group
        self._boundaries = torch.tensor([part.stop for part in parts[:-1]], device=table_RE.device)

    @torch.no_grad()
    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        asked = self._ask(inputs)
        self.touched = asked.rows
        if keep:
            self._kept.append(inputs)
        words = self._group.exchange_activations(self.table[asked.rows], asked.by_others, "lookup.rows")
        return words[asked.inverse].view(*inputs.shape, -1), state

    @torch.no_grad()
    def backward(self, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        """Nothing comes out below: tokens have no gradient."""
        asked = self._ask(torch.stack(self._kept))
        self._kept.clear()
        by_words = gradients_KTBH.new_zeros(sum(asked.of_others), gradients_KTBH.shape[-1])
        by_words.index_add_(0, asked.inverse, gradients_KTBH.flatten(0, 2))
        by_rows = self._group.exchange_gradients(by_words, asked.of_others, "lookup.gradients")
        total = gradient_by_rows(self.table)
        total.index_add_(0, asked.rows, by_rows)
        complete(self.table)
        return gradients_KTBH.new_empty(0)

    def _ask(self, inputs: Tensor) -> _Asked:
        words, inverse = torch.unique(inputs, return_inverse=True)
        ends = torch.searchsorted(words, self._boundaries).tolist()
        of_others = [stop - start for start, stop in zip([0, *ends], [*ends, len(words)], strict=True)]
        named, by_others = self._group.exchange(words.int(), of_others, "lookup.words")
        return _Asked(inverse.flatten(), of_others, named - self._parts[self._group.place].start, by_others)
