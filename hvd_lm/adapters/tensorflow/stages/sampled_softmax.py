"""The cross-entropy of training against sampled words (hvd_lm.model.candidates), whether or not the vocabulary is divided.

For each token the softmax is over the candidates and its own target; a candidate that is the target does not count twice. Of the
output's weights only rows of candidates and targets are read, or have a gradient. Under a split each rank judges the tokens of all
by the candidates, and the targets, that are words of its own; see split_output.py for what travels.

Shapes: M ranks, N tokens of this rank, A = M*N tokens of all, S candidates, C candidates of this rank, H units.
"""

from __future__ import annotations

from typing import NamedTuple

from hvd_lm.adapters.tensorflow.model_group import ModelGroup
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight

with native_stderr_closed():
    import tensorflow as tf

_NEVER = -1e30
"""The logit of what has no part in a softmax: its exponential is 0, and unlike an infinity it can be subtracted from itself."""


class SampledWords(NamedTuple):
    """The candidates of a micro-batch, and the logs of the expected counts of all that is judged."""

    words_S: tf.Tensor
    log_expected_S: tf.Tensor
    log_expected_of_targets_TB: tf.Tensor


SAMPLED_SPECS = SampledWords(
    tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None,), tf.float32), tf.TensorSpec((None, None), tf.float32)
)


class _Tokens(NamedTuple):
    """Tokens, of this rank or of all."""

    outputs_AH: tf.Tensor
    targets_A: tf.Tensor
    counted_A: tf.Tensor
    """The weight of each; 0 where it is ignored."""
    log_expected_A: tf.Tensor


class Words(NamedTuple):
    """The words that this rank has rows of, and who has the others."""

    kernel: Weight
    bias: Weight
    held: range
    group: ModelGroup | None


def accumulate_sampled(
    words: Words,
    outputs_NH: tf.Tensor,
    targets_N: tf.Tensor,
    weights_N: tf.Tensor,
    sampled: SampledWords,
    accumulation: Accumulation,
    name: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient by the outputs of a micro-batch, [N, H], and the sum of its cross-entropies.

    Adds to the gradients of the weights, and notes which rows it touched. `name` tells micro-batches apart. Collective.
    """
    held, group = words.held, words.group
    counts_N = tf.cast(targets_N >= 0, tf.float32)
    own = _Tokens(outputs_NH, targets_N, counts_N * weights_N, tf.reshape(sampled.log_expected_of_targets_TB, (-1,)))
    of_all = _gathered(own, group, name) if group else own
    outputs_AH, targets_A = of_all.outputs_AH, of_all.targets_A
    held_S = (sampled.words_S >= held.start) & (sampled.words_S < held.stop)
    rows_C = tf.boolean_mask(sampled.words_S, held_S) - held.start
    log_expected_C = tf.boolean_mask(sampled.log_expected_S, held_S)
    held_A = (targets_A >= held.start) & (targets_A < held.stop)
    holds_A = tf.cast(held_A, tf.float32)
    rows_A = tf.where(held_A, targets_A - held.start, 0)
    kernel_CH, kernel_AH = tf.gather(words.kernel.value, rows_C), tf.gather(words.kernel.value, rows_A)

    logits_AC = tf.matmul(outputs_AH, kernel_CH, transpose_b=True) + (tf.gather(words.bias.value, rows_C) - log_expected_C)
    of_targets_A = tf.reduce_sum(outputs_AH * kernel_AH, 1) + tf.gather(words.bias.value, rows_A) - of_all.log_expected_A
    place_A = tf.searchsorted(rows_C, rows_A)
    found_A = tf.gather(tf.concat((rows_C, (-1,)), 0), place_A)
    hits = tf.cast(tf.where(held_A & (found_A == rows_A))[:, 0], tf.int32)
    never = tf.fill((tf.size(hits),), _NEVER)
    logits_AC = tf.tensor_scatter_nd_update(logits_AC, tf.stack((hits, tf.gather(place_A, hits)), 1), never)
    judged_A = tf.where(held_A, of_targets_A, _NEVER)
    # Without candidates of this rank the largest is that of nothing.
    largest_A = tf.maximum(tf.reduce_max(logits_AC, 1), judged_A)
    exps_AC, exps_A = tf.exp(logits_AC - largest_A[:, None]), tf.exp(judged_A - largest_A)
    here_A3 = tf.stack((largest_A, tf.reduce_sum(exps_AC, 1) + exps_A, of_targets_A * holds_A), 1)
    statistics_MA3 = group.gather(here_A3[None], f"statistics.{name}") if group else here_A3[None]
    losses_A, shares_A = softmax_of_ranks(largest_A, statistics_MA3)

    factors_A = of_all.counted_A * shares_A
    by_candidates_AC = exps_AC * factors_A[:, None]
    by_targets_A = exps_A * factors_A - of_all.counted_A * holds_A
    gradients_AH = tf.matmul(by_candidates_AC, kernel_CH) + by_targets_A[:, None] * kernel_AH
    gradients_NH = group.sum_gradients(gradients_AH, f"gradients.{name}") if group else gradients_AH
    own_A = tf.where(held_A)[:, 0]
    rows_of_targets, by_own_A = tf.gather(rows_A, own_A), tf.gather(by_targets_A, own_A)
    rows = tf.concat((rows_C, rows_of_targets), 0)
    by_kernel = tf.matmul(by_candidates_AC, outputs_AH, transpose_a=True), by_own_A[:, None] * tf.gather(outputs_AH, own_A)
    for weight, by_rows in ((words.kernel, by_kernel), (words.bias, (tf.reduce_sum(by_candidates_AC, 0), by_own_A))):
        accumulation.begin(weight).scatter_add(tf.IndexedSlices(tf.concat(by_rows, 0), rows))
        accumulation.touch(weight, rows)
    count = tf.size(targets_N)
    losses_N = losses_A[group.place * count :][:count] if group else losses_A
    return gradients_NH, tf.reduce_sum(losses_N * counts_N)


def softmax_of_ranks(largest_A: tf.Tensor, statistics_MA3: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross-entropy of the tokens of all, [A], and what makes a softmax of the exponentials of this rank's words, [A].

    Of each rank the largest logit (`largest_A` of this one), the sum of exponentials, and the target's logit or 0.
    """
    largest_MA, sums_MA, of_targets_MA = tf.unstack(statistics_MA3, axis=2)
    greatest_A = tf.reduce_max(largest_MA, 0)
    total_A = tf.reduce_sum(sums_MA * tf.exp(largest_MA - greatest_A), 0)
    losses_A = greatest_A + tf.math.log(total_A) - tf.reduce_sum(of_targets_MA, 0)
    return losses_A, tf.exp(largest_A - greatest_A) / total_A


def _gathered(own: _Tokens, group: ModelGroup, name: str) -> _Tokens:
    outputs_AH = group.gather_activations(own.outputs_AH, f"outputs.{name}")
    # Of one number format, so that they are one message.
    parts = (own.targets_A, tf.bitcast(own.counted_A, tf.int32), tf.bitcast(own.log_expected_A, tf.int32))
    targets_A, *others = tf.unstack(group.gather(tf.stack(parts, 1), f"targets.{name}"), axis=1)
    counted_A, log_expected_A = (tf.bitcast(other, tf.float32) for other in others)
    return _Tokens(outputs_AH, targets_A, counted_A, log_expected_A)
