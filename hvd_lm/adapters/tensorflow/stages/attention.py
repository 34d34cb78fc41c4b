"""Attention to a source: what a translation reads of the sentence that it translates (Luong et al. 2015, arXiv:1508.04025, sections
3.1 and 3.3: global attention, score "general").

    a = softmax over the source of h_t W_q h_s      h~_t = tanh(W_o [sum of a h_s; h_t])

The source ends with its first `source_end`, which is a part of it. While it is read itself, a token attends to those up to it.

Shapes: T time, B sequences (of all micro-batches, in a backward), S tokens that may be attended to, H units.
"""

from __future__ import annotations

from collections.abc import Mapping

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Specs, Tensors
from hvd_lm.adapters.tensorflow.stages.differentiated import DifferentiatedStage
from hvd_lm.adapters.tensorflow.weight import Weight

with native_stderr_closed():
    import tensorflow as tf

_AFTER, _SOURCE, _END = 0.0, 1.0, 2.0
"""What a token is: of a translation, of its source, or the source's end."""


class Attention(DifferentiatedStage):
    """Its state is what was read of the source, [B, S*H], and what each token of that is, [B, S]."""

    reads_tokens = True

    def __init__(self, weights: Mapping[str, Weight], width: int, source_end: int) -> None:
        super().__init__(weights, width, units=0)
        self._width, self._source_end = width, source_end
        memory, attended = tf.TensorSpec((None, None, width), tf.float32), tf.TensorSpec((None, None, None), tf.bool)
        self.tape_specs = (memory, memory, attended)

    @property
    def state_specs(self) -> Specs:
        return (tf.TensorSpec((None, None), tf.float32),) * 2

    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        """`noise` is the tokens, int32 [T, B]."""
        read, kinds_BS = state
        steps, batch = tf.shape(inputs)[0], tf.shape(inputs)[1]
        memory_BSH = tf.reshape(read, (batch, tf.shape(kinds_BS)[1], self._width))
        ends = tf.cast(tf.transpose(noise[0] == self._source_end), tf.int32)
        ended_B1 = tf.reduce_sum(tf.cast(kinds_BS == _END, tf.int32), 1, keepdims=True)
        before = tf.cumsum(ends, 1, exclusive=True) + ended_B1
        kinds_BT = tf.where(before > 0, _AFTER, tf.where(ends > 0, _END, _SOURCE))
        kinds = tf.concat([kinds_BS, kinds_BT], 1)
        at = tf.range(tf.shape(kinds)[1])
        attended_BTS = (kinds != _AFTER)[:, None, :] & (at <= at[-steps:, None])
        outputs, _, tape = super().forward(inputs, (memory_BSH, attended_BTS), ())
        kept = tf.reduce_any(kinds != _AFTER, 0)
        after_BSH = tf.boolean_mask(tf.concat([memory_BSH, tf.transpose(inputs, (1, 0, 2))], 1), kept, axis=1)
        after = tf.reshape(after_BSH, (batch, tf.shape(after_BSH)[1] * self._width)), tf.boolean_mask(kinds, kept, axis=1)
        return Forwarded(outputs, after, tape)

    def compute(self, inputs_TBD: tf.Tensor, state: Tensors, weights: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, Tensors]:
        """Of a state [B, S, H] of the tokens before, and of which of these and of its own each attends to, bool [B, T, S]."""
        before_BSH, attended_BTS = state
        memory_BSH = tf.concat([before_BSH, tf.transpose(inputs_TBD, (1, 0, 2))], 1)
        queries_BTH = tf.einsum("tbd,hd->bth", inputs_TBD, weights["query_kernel"])
        scores_BTS = tf.matmul(queries_BTH, memory_BSH, transpose_b=True)
        weights_BTS = tf.nn.softmax(tf.where(attended_BTS, scores_BTS, scores_BTS.dtype.min))
        context_TBH = tf.transpose(tf.matmul(weights_BTS, memory_BSH), (1, 0, 2))
        joined = tf.concat([context_TBH, inputs_TBD], 2)
        return tf.tanh(tf.einsum("tbd,hd->tbh", joined, weights["output_kernel"])), state
