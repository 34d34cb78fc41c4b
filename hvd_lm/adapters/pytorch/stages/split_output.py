"""The output layer and its cross-entropy, the vocabulary divided over the ranks of a model group.

Each rank judges the tokens of all of them by its own words. What travels are outputs of the stage below, their gradients, and for
each token the largest logit of a rank and its sum of exponentials, never logits: with m_r and s_r of rank r,

    m = max_r m_r,  z = sum_r s_r exp(m_r - m),  cross-entropy = m + log z - logit of the target

The exponentials of a rank's words are kept while that travels, so that no product is made twice.

Shapes: M ranks, N tokens of this rank, A = M*N tokens of all, R words of this rank, H units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hvd_lm.adapters.pytorch.model_group import Later, ModelGroup
from hvd_lm.adapters.pytorch.products import add_product_to_gradient, add_to_gradient, product
from hvd_lm.adapters.pytorch.stages.output import Output, chunk_tokens
from hvd_lm.adapters.pytorch.stages.sampled_softmax import softmax_of_ranks
from hvd_lm.data.sources import IGNORED
from hvd_lm.model.cost import tokens_together


class _Judged(NamedTuple):
    """What the words of this rank say of the tokens of all."""

    largest_A: Tensor
    sums_A: Tensor
    """Of the exponentials of logits less the largest one."""
    of_targets_A: Tensor
    """Logits of the targets that are words of this rank; 0 of others."""


class SplitOutput(Output):
    """The last stage; `kernel_RH` and `bias_R` are those of this rank's words."""

    def __init__(self, kernel_RH: nn.Parameter, bias_R: nn.Parameter, parts: tuple[range, ...], group: ModelGroup) -> None:
        """`parts`: the words of each rank of the group."""
        super().__init__(kernel_RH, bias_R)
        self._parts, self._words, self._group = parts, parts[group.place], group

    def logits(self, outputs_NH: Tensor) -> Tensor:
        """Raises NotImplementedError: nobody has them all."""
        raise NotImplementedError("the logits of a split vocabulary are never in one place: read the model on one rank")

    def losses(self, outputs_TBH: Tensor, targets_N: Tensor) -> Tensor:
        outputs_NH = outputs_TBH.flatten(0, 1)
        count = len(outputs_NH)
        outputs_AH = self._group.gather_activations_later(outputs_NH, "outputs")()
        targets_A = self._group.gather(targets_N.int(), "targets").long()
        parts = zip(*(torch.split(tensor, self._tokens) for tensor in (outputs_AH, targets_A)), strict=True)
        judged = [self._judge(self._logits(outputs), targets) for outputs, targets in parts]
        here = _Judged(*map(torch.cat, zip(*judged, strict=True)))
        losses_A, _ = softmax_of_ranks(here.largest_A, self._statistics_later(here)())
        losses_N = losses_A[self._group.place * count :][:count]
        return losses_N * (targets_N != IGNORED)

    @property
    def _tokens(self) -> int:
        """Whose logits exist at a time."""
        return chunk_tokens(self.kernel.device, len(self._words))

    _group: ModelGroup

    def _backward_of_all(self) -> tuple[Tensor, Tensor]:
        kept, self._kept = self._kept, []
        shape = (len(kept), *kept[0].outputs_TBH.shape)
        outputs_NH = torch.cat([of.outputs_TBH.flatten(0, 1) for of in kept])
        targets_N = torch.cat([of.targets_TB.flatten() for of in kept])
        weights_N = torch.cat([outputs_NH.new_full((of.targets_TB.numel(),), of.weight) for of in kept])
        together = tokens_together(max(map(len, self._parts)), self._group.size)
        losses, gradients = [], []
        for parts in zip(*(torch.split(tensor, together) for tensor in (outputs_NH, targets_N, weights_N)), strict=True):
            loss, gradient_NH = self._accumulate(*parts)
            losses.append(loss)
            gradients.append(gradient_NH)
        return torch.stack(losses).sum(), torch.cat(gradients).view(shape)

    @torch.no_grad()
    def _accumulate(self, outputs_NH: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens whose exponentials exist together: the loss of this rank's, and its gradient by their outputs."""
        group, count = self._group, len(outputs_NH)
        arriving = group.gather_activations_later(outputs_NH, "outputs")
        counted_N = (targets_N != IGNORED) * weights_N
        # Of one number format, so that they are one message.
        judged_by = group.gather(torch.stack([targets_N.int(), counted_N.view(torch.int32)]).t(), "targets")
        targets_A, counted_A = judged_by[:, 0].long(), judged_by[:, 1].contiguous().view(torch.float32)
        outputs_AH = arriving()
        exps_of_chunks, judged = [], []
        for outputs, targets in zip(*(torch.split(tensor, self._tokens) for tensor in (outputs_AH, targets_A)), strict=True):
            logits_and_exps = self._logits(outputs)
            judged.append(self._judge(logits_and_exps, targets))
            exps_of_chunks.append(logits_and_exps)
        here = _Judged(*map(torch.cat, zip(*judged, strict=True)))
        statistics = self._statistics_later(here)
        gradients_AH = torch.cat([product(exps, self.kernel.t()) for exps in exps_of_chunks])
        losses_A, share_A = softmax_of_ranks(here.largest_A, statistics())
        # A softmax of this rank's words is their exponentials times this; the target's own is one less.
        factors_A = share_A * counted_A
        gradients_AH *= factors_A[:, None]
        own_A = self._own(targets_A).nonzero()[:, 0]
        rows_A, weights = targets_A[own_A] - self._words.start, counted_A[own_A]
        gradients_AH[own_A] -= self.kernel[rows_A] * weights[:, None]
        returning = group.sum_gradients_later(gradients_AH, "gradients")
        weighted_AH = outputs_AH * factors_A[:, None]
        for weighted, factors in zip(torch.split(weighted_AH, self._tokens), torch.split(factors_A, self._tokens), strict=True):
            exps = exps_of_chunks.pop(0)
            add_product_to_gradient(self.kernel, exps, weighted)
            add_to_gradient(self.bias, torch.mv(exps.t(), factors))
        assert self.kernel.grad is not None
        assert self.bias.grad is not None
        self.kernel.grad.index_add_(0, rows_A, outputs_AH[own_A] * weights[:, None], alpha=-1)
        self.bias.grad.index_add_(0, rows_A, weights, alpha=-1)
        loss = (losses_A[group.place * count :][:count] * (targets_N != IGNORED)).sum()
        return loss, returning()

    def _logits(self, outputs_NH: Tensor) -> Tensor:
        """Of this rank's words, [N, R]."""
        return product(outputs_NH, self.kernel, bias_N=self.bias)

    def _own(self, targets_N: Tensor) -> Tensor:
        """Whether a target is a word of this rank."""
        return (targets_N >= self._words.start) & (targets_N < self._words.stop)

    def _judge(self, logits_NR: Tensor, targets_N: Tensor) -> _Judged:
        """The exponentials take the logits' memory: what is largest exists once."""
        own_N = self._own(targets_N)
        rows_N = torch.where(own_N, targets_N - self._words.start, 0)
        of_targets = logits_NR.gather(1, rows_N[:, None])[:, 0] * own_N
        largest = logits_NR.amax(1)
        logits_NR -= largest[:, None]
        return _Judged(largest, logits_NR.exp_().sum(1), of_targets)

    def _statistics_later(self, here: _Judged) -> Later:
        """Of all ranks, [M, A, 3]."""
        return self._group.gather_later(torch.stack(here, 1)[None], "statistics")
