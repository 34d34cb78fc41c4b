"""What the ranks of a model group tell each other in the middle of a forward or backward, as nodes of TensorFlow's graphs.

Shapes: M ranks of the group, N rows of each, alike on all of them.
"""

from __future__ import annotations

from hvd_lm.adapters.job import Group
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.wire import Wire

with native_stderr_closed():
    import horovod.tensorflow as hvd
    import tensorflow as tf


class ModelGroup:
    """A group whose ranks make every call alike; `name` tells exchanges apart that are on their way together.

    What is called activations may travel as float16; all else travels as it is.
    """

    def __init__(self, group: Group, wire: Wire) -> None:
        self._process_set, self._wire = group.process_set, wire
        self.size, self.place = group.size, group.place

    def gather(self, rows: tf.Tensor, name: str) -> tf.Tensor:
        """The rows of all ranks, [M*N, ...]. Collective."""
        return hvd.allgather(rows, name=f"model.{name}", process_set=self._process_set)

    def gather_activations(self, rows: tf.Tensor, name: str) -> tf.Tensor:
        """As `gather`, of activations."""
        return tf.cast(self.gather(self._wire.activations(rows), name), tf.float32)

    def sum_gradients(self, parts_MN: tf.Tensor, name: str) -> tf.Tensor:
        """This rank's N rows of the sum over the ranks of their [M*N, ...], of gradients by activations. Collective."""
        rows = tf.shape(parts_MN)[0] // self.size
        # Each rank sums what it is sent: in float32, in one order, and no more bytes than by a ring.
        parts = self.exchange_gradients(parts_MN, tf.fill((self.size,), rows), name)
        return tf.reduce_sum(tf.reshape(parts, (self.size, rows, *parts_MN.shape[1:])), 0)

    def exchange(self, rows: tf.Tensor, splits: tf.Tensor, name: str) -> tuple[tf.Tensor, tf.Tensor]:
        """Send the first ``splits[0]`` rows to the first rank, and so on. Collective.

        Returns the rows that came, and how many from each.
        """
        received, counts = hvd.alltoall(rows, splits=splits, name=f"model.{name}", process_set=self._process_set)
        return received, counts

    def exchange_activations(self, rows: tf.Tensor, splits: tf.Tensor, name: str) -> tf.Tensor:
        """The rows that came, as by `exchange`, of activations."""
        received, _ = self.exchange(self._wire.activations(rows), splits, name)
        return tf.cast(received, tf.float32)

    def exchange_gradients(self, rows: tf.Tensor, splits: tf.Tensor, name: str) -> tf.Tensor:
        """The rows that came, as by `exchange`, of gradients by activations."""
        received, _ = self.exchange(self._wire.gradients(rows), splits, name)
        return tf.cast(received, tf.float32)
