"""The ends of a rank's stages in a pipeline: activations arrive from the rank below and depart to the one above, gradients the
other way.

Part of a graph: a rank ends its work on a micro-batch when the one above has taken it, and so is one ahead of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from hvd_lm.adapters.job import Group
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Specs, Stage, Tape, Tensors
from hvd_lm.adapters.tensorflow.stages.output import Judged, joined
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight

with native_stderr_closed():
    import horovod.tensorflow as hvd
    import tensorflow as tf


class Neighbour:
    """The rank on one side."""

    def __init__(self, group: Group, *, halves: bool) -> None:
        """With `halves` activations and gradients travel as float16."""
        self._process_set, self._wire = group.process_set, tf.float16 if halves else tf.float32
        self._other = 1 - group.place
        # TensorFlow would rename the second of two operations of one name, on this rank alone.
        self._pair = group.ranks[0]
        self.waited_seconds = tf.Variable(tf.zeros((), tf.float64), trainable=False)
        """For what came from there, or for the other rank to take what went there."""

    def send(self, rows: tf.Tensor, name: str) -> tf.Operation:
        """To the other rank, which receives under the same name; what is done when it has it."""
        received, done = self._exchange(tf.cast(rows, self._wire), tf.shape(rows)[0], name)
        with tf.control_dependencies([done]):
            # An exchange whose result nobody looks at would be optimized away.
            return tf.debugging.Assert(tf.equal(tf.size(received), 0), [f"{name} came from where they were sent to"])

    def receive(self, shape: tf.Tensor, width: int, name: str) -> tf.Tensor:
        """What the other rank sends: a tensor of this shape, whose last dimension is `width`."""
        nothing = tf.zeros(tf.concat(((0,), shape[1:]), 0), self._wire)
        received, done = self._exchange(nothing, 0, name)
        with tf.control_dependencies([done]):
            whole = tf.cast(tf.reshape(received, shape), tf.float32)
        return tf.ensure_shape(whole, (*[None] * (shape.shape[0] - 1), width))

    def _exchange(self, rows: tf.Tensor, count: tf.Tensor, name: str) -> tuple[tf.Tensor, tf.Operation]:
        with tf.control_dependencies([rows]):
            began = _clock()
        with tf.control_dependencies([began]):
            splits = tf.stack([count if place == self._other else 0 for place in range(2)])
            received, _ = hvd.alltoall(rows, splits=splits, name=f"pipeline.{self._pair}.{name}", process_set=self._process_set)
        with tf.control_dependencies([received]):
            done = self.waited_seconds.assign_add(_clock() - began)
        return received, done.op


def _clock() -> tf.Tensor:
    """Seconds, when the graph gets there. TensorFlow's own clock is refused where operations are to be deterministic."""
    return tf.numpy_function(time.perf_counter, (), tf.float64)


class Arrive(Stage):
    """The lowest stage of a rank that is not the first: tokens [T, B] -> what the rank below made of them, [T, B, D]."""

    def __init__(self, below: Neighbour, width: int) -> None:
        self._below, self._width = below, width

    @property
    def state_specs(self) -> Specs:
        """Of no width: a state says how many sequences there are also where a rank has no layer."""
        return (tf.TensorSpec((None, 0), tf.float32),) * 2

    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        shape = tf.concat((tf.shape(inputs), (self._width,)), 0)
        return Forwarded(self._below.receive(shape, self._width, "activations"), state, ())

    def backward(self, tapes: Sequence[Tape], gradient: tf.Tensor, accumulation: Accumulation) -> tf.Tensor:
        """Nothing comes out below on this rank."""
        with tf.control_dependencies([self._below.send(gradient, "gradients")]):
            return tf.zeros((0,))


class Depart:
    """In place of the output, of a rank that is not the last."""

    weights: Sequence[Weight] = ()

    def __init__(self, above: Neighbour, width: int) -> None:
        self._above, self.units = above, width

    def passed(self, outputs_TBH: tf.Tensor) -> tf.Tensor:
        """The outputs, when the rank above has them."""
        with tf.control_dependencies([self._above.send(outputs_TBH, "activations")]):
            return tf.identity(outputs_TBH)

    def backward(self, judged: Sequence[Judged], accumulation: Accumulation) -> tuple[tf.Tensor, tf.Tensor]:
        """The gradient by the outputs of all micro-batches, [T, K*B, H]; no loss."""
        shape = tf.shape(joined(judged).outputs_TBH)
        return self._above.receive(shape, self.units, "gradients"), tf.zeros((), tf.float64)

    def losses(self, outputs_TBH: tf.Tensor, targets_TB: tf.Tensor) -> tf.Tensor:
        """Zeros, [N]: they are the last rank's to tell."""
        with tf.control_dependencies([outputs_TBH]):
            return tf.zeros(tf.size(targets_TB))
