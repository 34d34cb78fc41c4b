"""The output layer and its cross-entropy, the vocabulary divided over the ranks of a model group.

Each rank judges the tokens of all of them by its own words. What travels are outputs of the stage below, their gradients, and for
each token the largest logit of a rank and its sum of exponentials, never logits: with m_r and s_r of rank r,

    m = max_r m_r,  z = sum_r s_r exp(m_r - m),  cross-entropy = m + log z - logit of the target

The exponentials of a rank's words are kept while that travels, so that no product is made twice.

Shapes: M ranks, N tokens of this rank, A = M*N tokens of all, R words of this rank, H units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hvd_lm.adapters.tensorflow.model_group import ModelGroup
from hvd_lm.adapters.tensorflow.products import by
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.output import CHUNK, Judged, Output, chunks_of, joined
from hvd_lm.adapters.tensorflow.stages.sampled_softmax import softmax_of_ranks
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight
from hvd_lm.model.cost import tokens_together

with native_stderr_closed():
    import tensorflow as tf


class SplitOutput(Output):
    """The last stage; `kernel_RH` and `bias_R` are those of this rank's words."""

    def __init__(self, kernel_RH: Weight, bias_R: Weight, parts: tuple[range, ...], group: ModelGroup) -> None:
        """`parts`: the words of each rank of the group."""
        super().__init__(kernel_RH, bias_R)
        self._parts, self._words, self._group = parts, parts[group.place], group

    def losses(self, outputs_TBH: tf.Tensor, targets_TB: tf.Tensor) -> tf.Tensor:
        outputs_NH, targets_N = self.rows(outputs_TBH), tf.reshape(targets_TB, (-1,))
        outputs_AH = self._group.gather_activations(outputs_NH, "outputs")
        targets_A = self._group.gather(targets_N, "targets")

        def judge(here: slice) -> tuple[tf.Tensor]:
            statistics, _ = self._judge(outputs_AH[here], targets_A[here])
            return (statistics,)

        (parts,) = _each_chunk(outputs_AH, judge, ((None, 3),))
        losses_A, _ = self._joined(parts.concat())
        return self._own(losses_A, targets_N)

    _group: ModelGroup

    def _backward_of_all(self, judged: Sequence[Judged], accumulation: Accumulation) -> tuple[tf.Tensor, tf.Tensor]:
        outputs_TBH, targets_TB, weights_TB, _ = joined(judged)
        outputs_NH = self.rows(outputs_TBH)
        targets_N, weights_N = tf.reshape(targets_TB, (-1,)), tf.reshape(weights_TB, (-1,))
        gradients = accumulation.begin(self.kernel), accumulation.begin(self.bias)
        together = tokens_together(max(map(len, self._parts)), self._group.size)

        def part(index: tf.Tensor, loss: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            here = slice(index * together, (index + 1) * together)
            of_part, gradient_NH = self._accumulate(outputs_NH[here], targets_N[here], weights_N[here], *gradients)
            return index + 1, loss + tf.cast(of_part, tf.float64), parts.write(index, gradient_NH)

        count = -(-tf.shape(outputs_NH)[0] // together)
        parts = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=(None, self.units))
        zero = tf.zeros((), tf.float64)
        _, loss, parts = tf.while_loop(lambda index, *_: index < count, part, (0, zero, parts), parallel_iterations=1)
        return tf.reshape(parts.concat(), tf.shape(outputs_TBH)), loss

    def _accumulate(
        self, outputs_NH: tf.Tensor, targets_N: tf.Tensor, weights_N: tf.Tensor, kernel: tf.Variable, bias: tf.Variable
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Of tokens whose exponentials exist together: the loss of this rank's, and its gradient by their outputs."""
        group = self._group
        outputs_AH = group.gather_activations(outputs_NH, "outputs")
        counted_N = tf.cast(targets_N >= 0, tf.float32) * weights_N
        # Of one number format, so that they are one message.
        judged_by_A2 = group.gather(tf.stack((targets_N, tf.bitcast(counted_N, tf.int32)), 1), "targets")
        targets_A, counted_A = judged_by_A2[:, 0], tf.bitcast(judged_by_A2[:, 1], tf.float32)

        def judge(here: slice) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            statistics, exps_NR = self._judge(outputs_AH[here], targets_A[here])
            return statistics, exps_NR, by(exps_NR, self.kernel.value)

        statistics, exps, products = _each_chunk(outputs_AH, judge, ((None, 3), (None, len(self._words)), (None, self.units)))
        losses_A, shares_A = self._joined(statistics.concat())
        # A softmax of this rank's words is their exponentials times this; the target's own is one less.
        factors_A = shares_A * counted_A
        own_A = tf.where(self._holds(targets_A))[:, 0]
        rows_A, weights_A = tf.gather(targets_A, own_A) - self._words.start, tf.gather(counted_A, own_A)
        of_targets_AH = tf.gather(self.kernel.value, rows_A) * weights_A[:, None]
        gradients_AH = tf.tensor_scatter_nd_sub(products.concat() * factors_A[:, None], own_A[:, None], of_targets_AH)
        gradient_NH = group.sum_gradients(gradients_AH, "gradients")

        def add(here: slice) -> tuple[()]:
            targets, counted = targets_A[here], counted_A[here]
            own = tf.where(self._holds(targets))[:, 0]
            at_targets = tf.stack((own, tf.cast(tf.gather(targets, own) - self._words.start, tf.int64)), 1)
            by_logits = exps.read(here.start // CHUNK) * factors_A[here][:, None]
            by_logits = tf.tensor_scatter_nd_sub(by_logits, at_targets, tf.gather(counted, own))
            kernel.assign_add(tf.matmul(by_logits, outputs_AH[here], transpose_a=True))
            bias.assign_add(tf.reduce_sum(by_logits, 0))
            return ()

        _each_chunk(outputs_AH, add, ())
        return tf.reduce_sum(self._own(losses_A, targets_N)), gradient_NH

    def _holds(self, targets_N: tf.Tensor) -> tf.Tensor:
        """Whether a target is a word of this rank."""
        return (targets_N >= self._words.start) & (targets_N < self._words.stop)

    def _judge(self, outputs_NH: tf.Tensor, targets_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Of each token, [N, 3], the largest logit, the sum of exponentials, and the target's logit; and exponentials [N, R]."""
        logits_NR = self.logits(outputs_NH)
        largest_N, own_N = tf.reduce_max(logits_NR, 1), self._holds(targets_N)
        rows_N = tf.where(own_N, targets_N - self._words.start, 0)
        of_targets_N = tf.gather(logits_NR, rows_N, batch_dims=1) * tf.cast(own_N, tf.float32)
        # In the memory of the logits, which nothing else reads any more: what is largest exists once.
        with tf.control_dependencies([largest_N, of_targets_N]):
            exps_NR = tf.exp(logits_NR - largest_N[:, None])
        return tf.stack((largest_N, tf.reduce_sum(exps_NR, 1), of_targets_N), 1), exps_NR

    def _joined(self, statistics_A3: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `softmax_of_ranks`, of what this rank knows."""
        return softmax_of_ranks(statistics_A3[:, 0], self._group.gather(statistics_A3[None], "statistics"))

    def _own(self, losses_A: tf.Tensor, targets_N: tf.Tensor) -> tf.Tensor:
        """Of this rank's tokens; 0 where a target is ignored."""
        count = tf.size(targets_N)
        losses_N = losses_A[self._group.place * count :][:count]
        return tf.where(targets_N >= 0, losses_N, 0.0)


def _each_chunk(
    rows: tf.Tensor, work: Callable[[slice], tuple[tf.Tensor, ...]], shapes: tuple[tuple[int | None, ...], ...]
) -> tuple[tf.TensorArray, ...]:
    """What `work` makes of each chunk of `rows`, which it is told of; of these shapes."""
    count = chunks_of(rows)

    def chunk(index: tf.Tensor, *arrays: tf.TensorArray) -> tuple[Any, ...]:
        made = work(slice(index * CHUNK, (index + 1) * CHUNK))
        return index + 1, *(array.write(index, part) for array, part in zip(arrays, made, strict=True))

    arrays = [tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=shape) for shape in shapes]
    _, *arrays = tf.while_loop(lambda index, *_: index < count, chunk, (0, *arrays), parallel_iterations=1)
    return tuple(arrays)
