"""The number format in which activations travel between ranks, as nodes of TensorFlow's graphs."""

from __future__ import annotations

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed

with native_stderr_closed():
    import tensorflow as tf


class Wire:
    """float32, or float16, which ends at 65504: whether an activation was beyond that is told beside the loss of the window.

    Of a gradient the loss scale takes care: its infinity is one in the norm.
    """

    def __init__(self, *, halves: bool) -> None:
        self._halves = halves
        self.dtype = tf.float16 if halves else tf.float32
        self._beyond = tf.Variable(tf.zeros((), tf.float64), trainable=False)

    def activations(self, rows: tf.Tensor) -> tf.Tensor:
        """As they travel."""
        if not self._halves:
            return rows
        halves = tf.cast(rows, tf.float16)
        beyond = tf.reduce_any(tf.math.is_inf(halves))
        self._beyond.assign(tf.maximum(self._beyond, tf.cast(beyond, tf.float64)))
        return halves

    def gradients(self, rows: tf.Tensor) -> tf.Tensor:
        """By activations, as they travel."""
        return tf.cast(rows, self.dtype)

    def take_beyond(self) -> tf.Tensor:
        """1 if an activation was beyond the format since this was last asked, else 0."""
        beyond = tf.identity(self._beyond)
        with tf.control_dependencies([beyond]):
            self._beyond.assign(tf.zeros((), tf.float64))
        return beyond
