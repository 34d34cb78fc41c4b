"""Attention to a source: what a translation reads of the sentence that it translates (Luong et al. 2015, arXiv:1508.04025, sections
3.1 and 3.3: global attention, score "general").

    a = softmax over the source of h_t W_q h_s      h~_t = tanh(W_o [sum of a h_s; h_t])

The source ends with its first `source_end`, which is a part of it. While it is read itself, a token attends to those up to it.

Shapes: T time, B sequences (of all micro-batches, in a backward), S tokens that may be attended to, H units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hvd_lm.adapters.pytorch.stages.base import LayerState
from hvd_lm.adapters.pytorch.stages.differentiated import DifferentiatedStage, Operands

_AFTER, _SOURCE, _END = range(3)
"""What a token is: of a translation, of its source, or the source's end."""


class Attention(DifferentiatedStage):
    """Its state is what was read of the source, [B, S*H], and what each token of that is, [B, S]."""

    reads_tokens = True

    def __init__(self, weights: Mapping[str, nn.Parameter], source_end: int) -> None:
        super().__init__(weights, units=0)
        self._source_end = source_end

    @torch.no_grad()
    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        """`noise` is the tokens, int64 [T, B]."""
        assert state is not None
        assert noise is not None
        read, kinds_BS = state
        steps, batch, width = inputs.shape
        memory_BSH = read.view(batch, kinds_BS.shape[1], width)
        ends = (noise == self._source_end).t().int()
        before = ends.cumsum(1) - ends + (kinds_BS == _END).sum(1, keepdim=True)
        kinds_BT = torch.where(before > 0, _AFTER, torch.where(ends > 0, _END, _SOURCE))
        kinds = torch.cat([kinds_BS, kinds_BT.to(kinds_BS.dtype)], dim=1)
        at = torch.arange(kinds.shape[1], device=inputs.device)
        attended_BTS = (kinds != _AFTER)[:, None, :] & (at <= at[-steps:, None])
        outputs, _ = super().forward(inputs, (memory_BSH, attended_BTS), None, keep=keep)
        kept = (kinds != _AFTER).any(0)
        after_BSH = torch.cat([memory_BSH, inputs.transpose(0, 1)], dim=1)[:, kept]
        return outputs, (after_BSH.flatten(1), kinds[:, kept])

    def compute(self, inputs_TBD: Tensor, state: LayerState, weights: Operands) -> tuple[Tensor, LayerState]:
        """Of a state [B, S, H] of the tokens before, and of which of these and of its own each attends to, bool [B, T, S]."""
        before_BSH, attended_BTS = state
        memory_BSH = torch.cat([before_BSH, inputs_TBD.transpose(0, 1)], dim=1)
        queries_BTH = weights.product(inputs_TBD, "query_kernel").transpose(0, 1)
        scores_BTS = (queries_BTH @ memory_BSH.transpose(1, 2)).masked_fill(~attended_BTS, float("-inf"))
        context_TBH = (scores_BTS.softmax(2) @ memory_BSH).transpose(0, 1)
        return torch.tanh(weights.product(torch.cat([context_TBH, inputs_TBD], dim=2), "output_kernel")), state
