"""The embedding: rows of a table, looked up."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Stage, Tape, Tensors, side_by_side
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight

with native_stderr_closed():
    import tensorflow as tf


class Lookup(Stage):
    """Tokens [T, B] -> their rows of `table_VE`, [T, B, E]."""

    def __init__(self, table_VE: Weight) -> None:
        self.table = table_VE
        self.weights = (table_VE,)
        self.tape_specs = (tf.TensorSpec((None, None), tf.int32),)

    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        return Forwarded(tf.gather(self.table.value, inputs), state, (inputs,))

    def touched(self, tapes: Sequence[Tape]) -> tf.Tensor:
        """Rows of the table that the forwards read, [N]."""
        return tf.concat([tf.reshape(inputs_TB, (-1,)) for (inputs_TB,) in tapes], 0)

    def backward(self, tapes: Sequence[Tape], gradient: tf.Tensor, accumulation: Accumulation) -> tf.Tensor:
        """Nothing comes out below: tokens have no gradient."""
        (inputs_TB,) = side_by_side(tapes, (1,))
        accumulation.begin(self.table).scatter_add(tf.IndexedSlices(gradient, inputs_TB))
        accumulation.complete(self.table)
        return tf.zeros((0,))
