"""The output of a model many of whose tokens have no target, as those of a source: they are left out before there are logits.

Shapes: T time, B sequences, N tokens, H units.
"""

from __future__ import annotations

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.output import Output, accumulate_cross_entropy, cross_entropies
from hvd_lm.adapters.tensorflow.weight import Accumulation

with native_stderr_closed():
    import tensorflow as tf


class PickedOutput(Output):
    """Tokens that have a target, judged."""

    def _backward_of_tokens(
        self, outputs_NH: tf.Tensor, targets_N: tf.Tensor, weights_N: tf.Tensor, accumulation: Accumulation
    ) -> tuple[tf.Tensor, tf.Tensor]:
        picked = tf.where(targets_N >= 0)
        outputs, targets, weights = (tf.gather_nd(rows, picked) for rows in (outputs_NH, targets_N, weights_N))
        of_picked, loss = accumulate_cross_entropy(outputs, self.kernel, self.bias, targets, weights, accumulation)
        return tf.scatter_nd(picked, of_picked, tf.shape(outputs_NH, tf.int64)), loss

    def losses(self, outputs_TBH: tf.Tensor, targets_TB: tf.Tensor) -> tf.Tensor:
        targets_N = tf.reshape(targets_TB, (-1,))
        picked = tf.where(targets_N >= 0)
        outputs, targets = tf.gather_nd(self.rows(outputs_TBH), picked), tf.gather_nd(targets_N, picked)
        return tf.scatter_nd(picked, cross_entropies(outputs, self.kernel, self.bias, targets), tf.shape(targets_N, tf.int64))
