"""The multiplicative LSTM (Krause et al. 2016, arXiv:1609.07959, equations 16 to 20): recurrent weights that depend on the input.

    m = (W_mx x) * (W_mh h)        takes the place of h in the gates of an LSTM

The output gate is outside of tanh, as in an LSTM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Tensors
from hvd_lm.adapters.tensorflow.stages.differentiated import DifferentiatedStage

with native_stderr_closed():
    import tensorflow as tf


class MultiplicativeLstm(DifferentiatedStage):
    """A layer; gates in the order i, f, g, o."""

    def compute(self, inputs_TBD: tf.Tensor, state: Tensors, weights: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, Tensors]:
        steps = tf.shape(inputs_TBD)[0]
        before_TBG = tf.einsum("tbd,gd->tbg", inputs_TBD, weights["input_kernel"]) + weights["bias"]
        factors_TBH = tf.einsum("tbd,hd->tbh", inputs_TBD, weights["multiplicative_input_kernel"])
        recurrent = tf.transpose(weights["recurrent_kernel"])
        multiplicative = tf.transpose(weights["multiplicative_recurrent_kernel"])

        def step(t: tf.Tensor, h: tf.Tensor, c: tf.Tensor, hs: Any) -> tuple[Any, ...]:
            m = factors_TBH[t] * tf.matmul(h, multiplicative)
            i, f, g, o = tf.split(before_TBG[t] + tf.matmul(m, recurrent), 4, axis=1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(c)
            return t + 1, h, c, hs.write(t, h)

        outputs = tf.TensorArray(tf.float32, steps)
        _, h, c, outputs = tf.while_loop(lambda t, *_: t < steps, step, (0, *state, outputs), maximum_iterations=steps)
        return outputs.stack(), (h, c)
