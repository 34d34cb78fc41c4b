"""Matrix products in the form that TensorFlow's CPU library is fast in.

Measured with one thread in GFLOPS (256 rows, kernels of 10,000 x 128 to 2048): a right factor that is transposed on the fly takes
30 to 66, the same product the other way round 80 to 89; a right factor whose rows are 4096 bytes apart, or a multiple, lets its
rows fall into the same places of the cache: 38 instead of 78 to 96.

Shapes: N rows, K and D units.
"""

from __future__ import annotations

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed

with native_stderr_closed():
    import tensorflow as tf

_WIDE = 512
"""Columns from which on the other way round pays, the result's transposition included."""
_ALIASED = 1024
"""Columns (float32) whose rows are 4096 bytes apart."""
_BLOCK = 256
"""Columns that are multiplied at a time where they are so."""


def by_transposed(rows_ND: tf.Tensor, kernel_KD: tf.Tensor) -> tf.Tensor:
    """``rows @ kernel.T``, [N, K]."""
    if kernel_KD.shape[1] < _WIDE or on_gpu():
        return tf.matmul(rows_ND, kernel_KD, transpose_b=True)
    return tf.transpose(tf.matmul(kernel_KD, tf.transpose(rows_ND)))


def by(rows_NK: tf.Tensor, kernel_KD: tf.Tensor) -> tf.Tensor:
    """``rows @ kernel``, [N, D]."""
    width = kernel_KD.shape[1]
    if width % _ALIASED or tf.config.threading.get_intra_op_parallelism_threads() != 1 or on_gpu():
        return tf.matmul(rows_NK, kernel_KD)
    parts: list[tf.Tensor] = []
    for start in range(0, width, _BLOCK):
        # One after the other, so that one block at a time is copied out of the kernel.
        with tf.control_dependencies(parts[-1:]):
            parts.append(tf.matmul(rows_NK, kernel_KD[:, start : start + _BLOCK]))
    return tf.concat(parts, 1)


def on_gpu() -> bool:
    """Whether TensorFlow computes on one."""
    return bool(tf.config.get_visible_devices("GPU"))
