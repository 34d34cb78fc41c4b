"""The output layer under its cross-entropy: forward and backward in one pass over chunks of tokens.

The logits [N, V], the largest activation of a language model, never exist as a whole, nor does their gradient (Hsu et al. 2024,
"Liger Kernel", arXiv:2410.10989, FusedLinearCrossEntropy). Gradients of the weights go straight to where they accumulate.

Shapes: K micro-batches, T time, B sequences, N tokens, V vocabulary, H units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hvd_lm.adapters.tensorflow.model_group import ModelGroup
from hvd_lm.adapters.tensorflow.products import by, by_transposed
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import side_by_side
from hvd_lm.adapters.tensorflow.stages.sampled_softmax import SampledWords, Words, accumulate_sampled
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight

with native_stderr_closed():
    import tensorflow as tf

CHUNK = 256
"""Tokens whose logits exist at a time: enough rows for the products to be nearly as fast as with all of them."""


class Judged(NamedTuple):
    """Outputs of the stage below, of a micro-batch, and what they will be judged by."""

    outputs_TBH: tf.Tensor
    targets_TB: tf.Tensor
    weights_TB: tf.Tensor
    """Multiply the gradient of each target's cross-entropy."""
    sampled: SampledWords | tuple[()] = ()
    """The words that it is judged against; all without."""


class _Softmax(NamedTuple):
    """Cross-entropy of a chunk of tokens."""

    losses_N: tf.Tensor
    """0 where a target is ignored."""
    by_logits_NV: tf.Tensor
    """Gradient by the logits, times `sums_N`."""
    sums_N: tf.Tensor
    """Of the exponentials."""
    counted_N: tf.Tensor
    """1 for each target that counts, 0 for others."""


class Output:
    """The last stage: what a model predicts from the outputs of the stage below, and how wrong that is."""

    def __init__(self, kernel_VH: Weight, bias_V: Weight) -> None:
        """The kernel may be a stage's below too; then it is not complete before that."""
        self.kernel, self.bias = kernel_VH, bias_V
        self.weights = (kernel_VH, bias_V)
        self.units = kernel_VH.shape[1]
        self._words, self._group = range(kernel_VH.shape[0]), None

    _words: range
    """That this rank has."""
    _group: ModelGroup | None
    """Has the others."""

    def logits(self, outputs_NH: tf.Tensor) -> tf.Tensor:
        """[N, V]"""
        return _logits(outputs_NH, self.kernel, self.bias)

    def passed(self, outputs_TBH: tf.Tensor) -> tf.Tensor:
        """The outputs of the stage below, when whoever needs them has them."""
        return outputs_TBH

    def losses(self, outputs_TBH: tf.Tensor, targets_TB: tf.Tensor) -> tf.Tensor:
        """Cross-entropy of every target, [N]; 0 where it is ignored."""
        return cross_entropies(self.rows(outputs_TBH), self.kernel, self.bias, tf.reshape(targets_TB, (-1,)))

    def backward(self, judged: Sequence[Judged], accumulation: Accumulation) -> tuple[tf.Tensor, tf.Tensor]:
        """Gradient by the outputs of all micro-batches [T, K*B, H], and the sum of their cross-entropies (float64).

        Adds to the gradients of the weights.
        """
        return (self._backward_of_sampled if judged[0].sampled else self._backward_of_all)(judged, accumulation)

    def _backward_of_sampled(self, judged: Sequence[Judged], accumulation: Accumulation) -> tuple[tf.Tensor, tf.Tensor]:
        """One by one: each has its own candidates."""
        words = Words(self.kernel, self.bias, self._words, self._group)
        gradients, loss, before = [], tf.zeros((), tf.float64), list[tf.Tensor]()
        for number, of in enumerate(judged):
            with tf.control_dependencies(before):
                rows = self.rows(of.outputs_TBH), tf.reshape(of.targets_TB, (-1,)), tf.reshape(of.weights_TB, (-1,))
                gradient_NH, of_part = accumulate_sampled(
                    words, *rows, SampledWords(*of.sampled), accumulation, f"sampled.{number}"
                )
            gradients.append(tf.reshape(gradient_NH, tf.shape(of.outputs_TBH)))
            loss += tf.cast(of_part, tf.float64)
            before = [gradient_NH]
        return tf.concat(gradients, 1), loss

    def _backward_of_all(self, judged: Sequence[Judged], accumulation: Accumulation) -> tuple[tf.Tensor, tf.Tensor]:
        outputs_TBH, targets_TB, weights_TB, _ = joined(judged)
        targets_N, weights_N = tf.reshape(targets_TB, (-1,)), tf.reshape(weights_TB, (-1,))
        gradients_NH, loss = self._backward_of_tokens(self.rows(outputs_TBH), targets_N, weights_N, accumulation)
        return tf.reshape(gradients_NH, tf.shape(outputs_TBH)), loss

    def _backward_of_tokens(
        self, outputs_NH: tf.Tensor, targets_N: tf.Tensor, weights_N: tf.Tensor, accumulation: Accumulation
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `backward`, of tokens: the gradient is [N, H]."""
        return accumulate_cross_entropy(outputs_NH, self.kernel, self.bias, targets_N, weights_N, accumulation)

    def rows(self, outputs_TBH: tf.Tensor) -> tf.Tensor:
        """[N, H]"""
        return tf.reshape(outputs_TBH, (-1, self.units))


def _logits(outputs_NH: tf.Tensor, kernel: Weight, bias: Weight | None) -> tf.Tensor:
    products_NV = by_transposed(outputs_NH, kernel.value)
    return products_NV if bias is None else tf.nn.bias_add(products_NV, bias.value)


def cross_entropies(outputs_NH: tf.Tensor, kernel: Weight, bias: Weight | None, targets_N: tf.Tensor) -> tf.Tensor:
    """[N]; 0 where a target is ignored."""

    def chunk(index: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        here = slice(index * CHUNK, (index + 1) * CHUNK)
        losses = _softmax(_logits(outputs_NH[here], kernel, bias), targets_N[here]).losses_N
        return index + 1, parts.write(index, losses)

    chunks = chunks_of(outputs_NH)
    parts = tf.TensorArray(tf.float32, chunks, infer_shape=False, element_shape=(None,))
    _, parts = tf.while_loop(lambda index, _: index < chunks, chunk, (0, parts), parallel_iterations=1)
    return parts.concat()


def accumulate_cross_entropy(
    outputs_NH: tf.Tensor,
    kernel: Weight,
    bias: Weight | None,
    targets_N: tf.Tensor,
    weights_N: tf.Tensor,
    accumulation: Accumulation,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient by the outputs [N, H] of the sum of the cross-entropies weighted by `weights_N`, and the plain sum (float64).

    Adds to the gradients of the weights.
    """
    by_kernel, by_bias = accumulation.begin(kernel), accumulation.begin(bias) if bias else None

    def chunk(index: tf.Tensor, loss: tf.Tensor, gradients: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        here = slice(index * CHUNK, (index + 1) * CHUNK)
        outputs = outputs_NH[here]
        losses, by_logits, sums, counted = _softmax(_logits(outputs, kernel, bias), targets_N[here])
        # Factors of tokens go to what has H columns instead of V.
        factors = (counted * weights_N[here] / sums)[:, None]
        by_kernel.assign_add(tf.matmul(by_logits, outputs * factors, transpose_a=True))
        if by_bias is not None:
            by_bias.assign_add(tf.matmul(factors, by_logits, transpose_a=True)[0])
        gradient_NH = by(by_logits, kernel.value) * factors
        return index + 1, loss + tf.cast(tf.reduce_sum(losses), tf.float64), gradients.write(index, gradient_NH)

    chunks = chunks_of(outputs_NH)
    parts = tf.TensorArray(tf.float32, chunks, infer_shape=False, element_shape=(None, kernel.shape[1]))
    zero = tf.zeros((), tf.float64)
    _, loss, parts = tf.while_loop(lambda index, *_: index < chunks, chunk, (0, zero, parts), parallel_iterations=1)
    return parts.concat(), loss


def joined(judged: Sequence[Judged]) -> Judged:
    """Of several micro-batches that are judged against all words, side by side."""
    outputs_TBH, targets_TB, weights_TB = side_by_side([tuple(of)[:3] for of in judged], (1, 1, 1))
    return Judged(outputs_TBH, targets_TB, weights_TB)


def chunks_of(rows: tf.Tensor) -> tf.Tensor:
    """How many chunks `rows` are."""
    return -(-tf.shape(rows)[0] // CHUNK)


def _softmax(logits_NV: tf.Tensor, targets_N: tf.Tensor) -> _Softmax:
    """On a CPU less than half of what TensorFlow's operation takes."""
    largest_N = tf.reduce_max(logits_NV, 1)
    # Ignored targets (< 0) become class 0 with no weight.
    at_targets_N2 = tf.stack((tf.range(tf.size(targets_N)), tf.maximum(targets_N, 0)), 1)
    of_targets_N = tf.gather_nd(logits_NV, at_targets_N2)
    # All in the memory of the logits, which nothing else reads any more: what is largest exists once.
    with tf.control_dependencies([largest_N, of_targets_N]):
        exps_NV = tf.exp(logits_NV - largest_N[:, None])
    sums_N, counted_N = tf.reduce_sum(exps_NV, 1), tf.cast(targets_N >= 0, tf.float32)
    losses_N = (tf.math.log(sums_N) - (of_targets_N - largest_N)) * counted_N
    return _Softmax(losses_N, tf.tensor_scatter_nd_sub(exps_NV, at_targets_N2, sums_N), sums_N, counted_N)
