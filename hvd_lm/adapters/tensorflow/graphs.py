"""Functions as TensorFlow's graphs. Their loops and conditions are TensorFlow's own already."""

from __future__ import annotations

from functools import partial

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed

with native_stderr_closed():
    import tensorflow as tf

# AutoGraph would find nothing to convert, in 3 seconds of every start.
graph_function = partial(tf.function, autograph=False)
"""As `tf.function`."""
