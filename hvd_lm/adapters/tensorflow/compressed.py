"""Gradients that travel as messages of a compressor (hvd_lm.compression.compressors), and what is remembered of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.weight import Weight
from hvd_lm.compression.compressors import Compressor
from hvd_lm.compression.kept import KEPT, LAST
from hvd_lm.model.split import Share
from hvd_lm.model.weights import Array

with native_stderr_closed():
    import tensorflow as tf
    import tensorflow.experimental.numpy as tnp

Sum = Callable[[tf.Tensor, str], tf.Tensor]
"""Over the ranks, by a name."""


class Compressed:
    """Those of one job."""

    def __init__(self, compressor: Compressor, firsts: Mapping[str, Array], remembered: Mapping[str, Share]) -> None:
        """`firsts`: by the names of the parameters that are compressed, what they begin with."""
        self._compressor, self._firsts = compressor, firsts
        self.names = frozenset(firsts)
        self.exact_steps = compressor.exact_steps
        """At the beginning."""
        self.memory = {
            name: tf.Variable(tf.zeros(share.shape), name=name.replace("/", "_"), trainable=False)
            for name, share in remembered.items()
        }
        """By the names of a checkpoint."""
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        for name, first in self._firsts.items():
            kept = self.memory[f"{KEPT}/{name}"]
            kept.assign(tf.zeros(kept.shape))
            self.memory[f"{LAST}/{name}"].assign(first)

    def sum(self, weight: Weight, rows: tf.Tensor | None, sum_of: Sum) -> tf.Tensor:
        """Sum its gradient; with `rows`, these alone, as the others are zeros. Returns what is sent first. Collective."""
        compressor, name = self._compressor, weight.name
        kept, last = self.memory[f"{KEPT}/{name}"], self.memory[f"{LAST}/{name}"]
        if rows is None:
            # From here on what is kept is that and the gradient together.
            whole = kept.assign_add(tf.ensure_shape(weight.take_gradient(), weight.shape)).read_value()
        else:
            whole = tf.gather(kept, rows) + tf.gather(weight.gradient, rows)
        first = compressor.compress(tnp, whole, last.read_value())
        common, message = compressor.combine(tnp, whole, sum_of(first, f"gradient.{name}"))
        total = sum_of(message, f"gradient.{name}.second")
        summed, sent = (compressor.decompress(tnp, common, of) for of in (total, message))
        if rows is None:
            kept.assign_sub(sent)
            weight.gradient.assign(summed)
        else:
            kept.scatter_update(tf.IndexedSlices(whole - sent, rows))
            weight.gradient.scatter_update(tf.IndexedSlices(summed, rows))
        last.assign(total)
        return first
