"""The cross-entropy of training against sampled words (hvd_lm.model.candidates), whether or not the vocabulary is divided.

For each token the softmax is over the candidates and its own target; a candidate that is the target does not count twice. Of the
output's weights only rows of candidates and targets are read, or have a gradient. Under a split each rank judges the tokens of all
by the candidates, and the targets, that are words of its own; see split_output.py for what travels.

Shapes: M ranks, N tokens of this rank, A = M*N tokens of all, S candidates, C candidates of this rank, H units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hvd_lm.adapters.pytorch.memory import gradient_by_rows
from hvd_lm.adapters.pytorch.model_group import ModelGroup
from hvd_lm.data.sources import IGNORED

_NEVER = -1e30
"""The logit of what has no part in a softmax: its exponential is 0, and unlike an infinity it can be subtracted from itself."""


class SampledWords(NamedTuple):
    """The candidates of a micro-batch, and the logs of the expected counts of all that is judged."""

    words_S: Tensor
    log_expected_S: Tensor
    log_expected_of_targets_N: Tensor


class _Tokens(NamedTuple):
    """Tokens, of this rank or of all."""

    outputs_AH: Tensor
    targets_A: Tensor
    counted_A: Tensor
    """The weight of each; 0 where it is ignored."""
    log_expected_A: Tensor


class Sampled(NamedTuple):
    """What a micro-batch gives."""

    loss: Tensor
    gradients_NH: Tensor
    """By the outputs of the stage below."""
    touched: Tensor
    """Rows of this rank with a gradient; some twice."""


@torch.no_grad()
def accumulate_sampled(
    kernel: nn.Parameter,
    bias: nn.Parameter,
    outputs_NH: Tensor,
    targets_N: Tensor,
    weight: float,
    sampled: SampledWords,
    words: range,
    group: ModelGroup | None,
) -> Sampled:
    """Adds to the gradients of the weights, of which this rank has the rows of `words`. Collective over `group`."""
    own = _Tokens(outputs_NH, targets_N, (targets_N != IGNORED) * weight, sampled.log_expected_of_targets_N)
    of_all = _gathered(own, group) if group else own
    outputs_AH, targets_A = of_all.outputs_AH, of_all.targets_A
    held_S = (sampled.words_S >= words.start) & (sampled.words_S < words.stop)
    rows_C, log_expected_C = sampled.words_S[held_S] - words.start, sampled.log_expected_S[held_S]
    held_A = (targets_A >= words.start) & (targets_A < words.stop)
    rows_A = torch.where(held_A, targets_A - words.start, 0)
    kernel_CH, kernel_AH, count = kernel[rows_C], kernel[rows_A], len(rows_C)

    # One more column than candidates: the target's.
    logits = outputs_AH.new_empty(len(outputs_AH), count + 1)
    torch.addmm(bias[rows_C] - log_expected_C, outputs_AH, kernel_CH.t(), out=logits[:, :count])
    of_targets_A = (outputs_AH * kernel_AH).sum(1) + bias[rows_A] - of_all.log_expected_A
    logits[:, count] = torch.where(held_A, of_targets_A, _NEVER)
    if count:
        place_A = torch.searchsorted(rows_C, rows_A).clamp_(max=count - 1)
        hits = (held_A & (rows_C[place_A] == rows_A)).nonzero()[:, 0]
        logits[hits, place_A[hits]] = _NEVER
    largest_A = logits.amax(1)
    exps = logits.sub_(largest_A[:, None]).exp_()
    here_A3 = torch.stack([largest_A, exps.sum(1), of_targets_A * held_A], 1)
    statistics_MA3 = group.gather(here_A3[None], "statistics") if group else here_A3[None]
    losses_A, shares_A = softmax_of_ranks(largest_A, statistics_MA3)

    by_logits = exps.mul_((of_all.counted_A * shares_A)[:, None])
    by_logits[:, count] -= of_all.counted_A * held_A
    by_candidates_AC, by_targets_A1 = by_logits[:, :count], by_logits[:, count:]
    gradients_AH = torch.addmm(by_targets_A1 * kernel_AH, by_candidates_AC, kernel_CH)
    returning = group.sum_gradients_later(gradients_AH, "gradients") if group else (lambda: gradients_AH)
    own_A = held_A.nonzero()[:, 0]
    rows_of_targets = rows_A[own_A]
    for parameter, by_rows_C, by_targets in (
        (kernel, by_candidates_AC.t() @ outputs_AH, by_targets_A1[own_A] * outputs_AH[own_A]),
        (bias, by_candidates_AC.sum(0), by_targets_A1[own_A, 0]),
    ):
        total = gradient_by_rows(parameter)
        total.index_add_(0, rows_C, by_rows_C)
        total.index_add_(0, rows_of_targets, by_targets)
    losses_N = losses_A[group.place * len(targets_N) :][: len(targets_N)] if group else losses_A
    return Sampled((losses_N * (targets_N != IGNORED)).sum(), returning(), torch.cat([rows_C, rows_of_targets]))


def softmax_of_ranks(largest_A: Tensor, statistics_MA3: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the tokens of all, [A], and what makes a softmax of the exponentials of this rank's words, [A].

    Of each rank the largest logit (`largest_A` of this one), the sum of exponentials, and the target's logit or 0.
    """
    largest_MA, sums_MA, of_targets_MA = statistics_MA3.unbind(2)
    greatest_A = largest_MA.amax(0)
    total_A = (sums_MA * (largest_MA - greatest_A).exp()).sum(0)
    return greatest_A + total_A.log() - of_targets_MA.sum(0), (largest_A - greatest_A).exp() / total_A


def _gathered(own: _Tokens, group: ModelGroup) -> _Tokens:
    arriving = group.gather_activations_later(own.outputs_AH, "outputs")
    # Of one number format, so that they are one message.
    parts = [own.targets_A.int(), own.counted_A.view(torch.int32), own.log_expected_A.view(torch.int32)]
    targets_A, counted_A, log_expected_A = group.gather(torch.stack(parts, 1), "targets").t().contiguous()
    return _Tokens(arriving(), targets_A.long(), counted_A.view(torch.float32), log_expected_A.view(torch.float32))
