"""Memory that TensorFlow's allocator holds on a CPU, in one piece."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.model.split import Share

with native_stderr_closed():
    import tensorflow as tf

_COPIES = 8
"""Weights, gradients and two moments are four; activations and temporaries find room in the rest."""


def reserve(shares: Iterable[Share]) -> None:
    """Let all that training with `shares` needs lie in one region; pages that nothing is written to take no memory.

    By itself the allocator (BFC) begins with small regions and doubles them, and what is free across two of them serves nobody.
    """
    values = _COPIES * sum(math.prod(share.shape) for share in shares)
    with contextlib.suppress(tf.errors.ResourceExhaustedError), tf.device("CPU:0"):
        tf.raw_ops.Empty(shape=(values,), dtype=tf.float32)
