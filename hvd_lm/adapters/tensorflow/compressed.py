"""Gradients that do not travel as they are (hvd_lm.compression), and what is remembered of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.weight import Gradient
from hvd_lm.compression.compressors import Compressor
from hvd_lm.compression.kept import KEPT, LAST, Firsts
from hvd_lm.model.split import Share

with native_stderr_closed():
    import tensorflow as tf
    import tensorflow.experimental.numpy as tnp

Send = Callable[[tf.Tensor, str], tf.Tensor]
"""Sums over the ranks, by a name. Or gathers, along the first axis."""
Counts = tuple[int, ...]
"""Of values that are selected, of each parameter. Of messages that are summed, none."""


class Compressed(ABC):
    """The gradients of one job that are compressed."""

    exact_steps = 0
    """At the beginning."""

    def __init__(self, firsts: Firsts, remembered: Mapping[str, Share]) -> None:
        self._firsts = firsts
        self.names = frozenset(firsts)
        self.memory = {
            name: tf.Variable(tf.zeros(share.shape), name=name.replace("/", "_"), trainable=False)
            for name, share in remembered.items()
        }
        """By the names of a checkpoint."""
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        for variable in self.memory.values():
            variable.assign(tf.zeros(variable.shape))
        for name, first in self._firsts.items():
            if first is not None:
                self.memory[f"{LAST}/{name}"].assign(first)

    def counts(self, applied_steps: int) -> Counts:  # noqa: ARG002 - of selections alone
        """After so many optimizer steps."""
        return ()

    @abstractmethod
    def start(self, weight: Gradient, rows: tf.Tensor | None, sum_of: Send) -> Sequence[tf.Tensor]:
        """Its gradient is complete; with `rows`, all others are zeros. Returns what is sent first. Collective."""

    def backward_complete(self, counts: Counts, gather: Send) -> None:  # noqa: B027 - most messages have left by then
        """All gradients of the window have started. Collective."""


class Summed(Compressed):
    """As messages of a compressor."""

    def __init__(self, compressor: Compressor, firsts: Firsts, remembered: Mapping[str, Share]) -> None:
        super().__init__(firsts, remembered)
        self._compressor, self.exact_steps = compressor, compressor.exact_steps

    def start(self, weight: Gradient, rows: tf.Tensor | None, sum_of: Send) -> Sequence[tf.Tensor]:
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
        last.assign(tf.cast(total, tf.float32))
        return (first,)
