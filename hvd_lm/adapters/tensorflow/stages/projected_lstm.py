"""The LSTM with a projection (Sak et al. 2014, arXiv:1402.1128, equations 7 to 13, without peepholes and the non-recurrent units).

    h = W_p (o * tanh(c))

What recurs and goes up has P columns, the cells have H. Its state (h, c) is H wide for both: h fills the first P columns of its
part, the others are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Tensors
from hvd_lm.adapters.tensorflow.stages.differentiated import DifferentiatedStage

with native_stderr_closed():
    import tensorflow as tf


class ProjectedLstm(DifferentiatedStage):
    """A layer; gates in the order i, f, g, o."""

    def compute(self, inputs_TBD: tf.Tensor, state: Tensors, weights: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, Tensors]:
        (h_BH, c_BH), steps = state, tf.shape(inputs_TBD)[0]
        projected = weights["projection_kernel"].shape[0]
        before_TBG = tf.einsum("tbd,gd->tbg", inputs_TBD, weights["input_kernel"]) + weights["bias"]
        recurrent, projection = tf.transpose(weights["recurrent_kernel"]), tf.transpose(weights["projection_kernel"])

        def step(t: tf.Tensor, h: tf.Tensor, c: tf.Tensor, hs: Any) -> tuple[Any, ...]:
            i, f, g, o = tf.split(before_TBG[t] + tf.matmul(h, recurrent), 4, axis=1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.matmul(tf.sigmoid(o) * tf.tanh(c), projection)
            return t + 1, h, c, hs.write(t, h)

        begin = 0, h_BH[:, :projected], c_BH, tf.TensorArray(tf.float32, steps)
        _, h, c, outputs = tf.while_loop(lambda t, *_: t < steps, step, begin, maximum_iterations=steps)
        return outputs.stack(), (tf.pad(h, ((0, 0), (0, self.units - projected))), c)
