"""The embedding, its rows divided over the ranks of a model group: each asks the others for those that its tokens name.

A word that occurs several times is asked for, and told of, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hvd_lm.adapters.tensorflow.model_group import ModelGroup
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Tape, Tensors
from hvd_lm.adapters.tensorflow.stages.lookup import Lookup
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight

with native_stderr_closed():
    import tensorflow as tf


class _Asked(NamedTuple):
    """Which rows the ranks want of each other."""

    inverse: tf.Tensor
    """For each of this rank's tokens its place among its words, which are ascending."""
    of_others: tf.Tensor
    """How many of its words each rank holds."""
    rows: tf.Tensor
    """Of this rank's table, that the ranks named, one rank after the other."""
    by_others: tf.Tensor
    """How many each of them named."""


class SplitLookup(Lookup):
    """Tokens [T, B] -> their rows, [T, B, E], of a table of which `table_RE` is this rank's part."""

    def __init__(self, table_RE: Weight, parts: Sequence[range], group: ModelGroup) -> None:
        """`parts`: the rows of each rank of the group."""
        super().__init__(table_RE)
        self._parts, self._group = parts, group
        self.tape_specs = (*self.tape_specs, tf.TensorSpec((None,), tf.int32))

    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        asked = self._ask(inputs, "forward")
        rows = tf.gather(self.table.value, asked.rows)
        words = self._group.exchange_activations(rows, asked.by_others, "lookup.rows")
        outputs = tf.reshape(tf.gather(words, asked.inverse), (*tf.unstack(tf.shape(inputs)), self.table.shape[1]))
        return Forwarded(outputs, state, (inputs, asked.rows))

    def touched(self, tapes: Sequence[Tape]) -> tf.Tensor:
        return tf.concat([rows for _, rows in tapes], 0)

    def backward(self, tapes: Sequence[Tape], gradient: tf.Tensor, accumulation: Accumulation) -> tf.Tensor:
        """Nothing comes out below: tokens have no gradient."""
        asked = self._ask(tf.concat([inputs_TB for inputs_TB, _ in tapes], 1), "backward")
        rows = tf.reshape(gradient, (-1, self.table.shape[1]))
        by_words = tf.math.unsorted_segment_sum(rows, asked.inverse, tf.reduce_sum(asked.of_others))
        by_rows = self._group.exchange_gradients(by_words, asked.of_others, "lookup.gradients")
        accumulation.begin(self.table).scatter_add(tf.IndexedSlices(by_rows, asked.rows))
        accumulation.complete(self.table)
        return tf.zeros((0,))

    def _ask(self, inputs: tf.Tensor, name: str) -> _Asked:
        tokens = tf.reshape(inputs, (-1,))
        words, _ = tf.unique(tf.sort(tokens))
        ends = tf.searchsorted(words, tf.constant([part.stop for part in self._parts], tf.int32))
        of_others = ends - tf.concat(((0,), ends[:-1]), 0)
        named, by_others = self._group.exchange(words, of_others, f"lookup.{name}")
        return _Asked(tf.searchsorted(words, tokens), of_others, named - self._parts[self._group.place].start, by_others)
