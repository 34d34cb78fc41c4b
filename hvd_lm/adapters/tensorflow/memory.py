"""Memory that TensorFlow's allocator holds on a CPU, in one piece."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

from hvd_lm.adapters.tensorflow.products import on_gpu
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.model.split import Share

with native_stderr_closed():
    import tensorflow as tf

_ROW = 1 << 20
"""Values; TensorFlow counts in 32 bits along an axis."""


def reserve(shares: Iterable[Share], copies: int) -> None:
    """On a CPU let `copies` of what this rank holds lie in one region; pages that nothing is written to take no memory.

    By itself the allocator (BFC) begins with small regions and doubles them, and what is free across two of them serves nobody.
    It makes a region as large as the next power of two, and notes 8 bytes for every 256 of it: no more is reserved than is used.
    """
    if on_gpu():
        return
    values = copies * sum(math.prod(share.shape) for share in shares)
    with contextlib.suppress(tf.errors.ResourceExhaustedError), tf.device("CPU:0"):
        tf.raw_ops.Empty(shape=(-(-values // _ROW), _ROW), dtype=tf.float32)
