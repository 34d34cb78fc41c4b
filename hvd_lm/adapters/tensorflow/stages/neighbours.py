"""The ends of a rank's stages in a pipeline: activations arrive from the rank below and depart to the one above, gradients the
other way.

Part of a graph. By Horovod a rank ends its work on a micro-batch when the one above has taken it, and so is one ahead of it; by
MPI what departs does not wait.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.job import Group
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Specs, Stage, Tape, Tensors
from hvd_lm.adapters.tensorflow.stages.output import Judged, joined
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight
from hvd_lm.adapters.tensorflow.wire import Wire
from hvd_lm.job.point_to_point import Kind, Link

with native_stderr_closed():
    import horovod.tensorflow as hvd
    import tensorflow as tf


class Neighbour(ABC):
    """The rank on one side."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def send(self, rows: tf.Tensor, kind: Kind) -> tf.Operation:
        """To the other rank, which receives the same kind; what is done when `rows` are its."""
        wire = self._wire.activations(rows) if kind == "activations" else self._wire.gradients(rows)
        return self._send(wire, kind)

    def receive(self, shape: tf.Tensor, width: int, kind: Kind) -> tf.Tensor:
        """What the other rank sends: a tensor of this shape, whose last dimension is `width`."""
        whole = tf.cast(tf.reshape(self._receive(shape, kind), shape), tf.float32)
        return tf.ensure_shape(whole, (*[None] * (shape.shape[0] - 1), width))

    @abstractmethod
    def take_waited_seconds(self) -> float:
        """How long this rank has waited for the other one since this was last asked."""

    @abstractmethod
    def _send(self, rows: tf.Tensor, kind: Kind) -> tf.Operation:
        """As they are."""

    @abstractmethod
    def _receive(self, shape: tf.Tensor, kind: Kind) -> tf.Tensor:
        """As they came, of any shape."""


class NeighbourByAlltoall(Neighbour):
    """By Horovod, which knows no other way for a rank to reach one other."""

    def __init__(self, group: Group, wire: Wire) -> None:
        super().__init__(wire)
        self._process_set, self._other = group.process_set, 1 - group.place
        # TensorFlow would rename the second of two operations of one name, on this rank alone.
        self._pair = group.ranks[0]
        self._waited_seconds = tf.Variable(tf.zeros((), tf.float64), trainable=False)
        """For what came from there, or for the other rank to take what went there."""

    def take_waited_seconds(self) -> float:
        waited = float(self._waited_seconds)
        self._waited_seconds.assign(0.0)
        return waited

    def _send(self, rows: tf.Tensor, kind: Kind) -> tf.Operation:
        received, done = self._exchange(rows, tf.shape(rows)[0], kind)
        with tf.control_dependencies([done]):
            # An exchange whose result nobody looks at would be optimized away.
            return tf.debugging.Assert(tf.equal(tf.size(received), 0), [f"{kind} came from where they were sent to"])

    def _receive(self, shape: tf.Tensor, kind: Kind) -> tf.Tensor:
        nothing = tf.zeros(tf.concat(((0,), shape[1:]), 0), self._wire.dtype)
        received, done = self._exchange(nothing, 0, kind)
        with tf.control_dependencies([done]):
            return tf.identity(received)

    def _exchange(self, rows: tf.Tensor, count: tf.Tensor, kind: Kind) -> tuple[tf.Tensor, tf.Operation]:
        with tf.control_dependencies([rows]):
            began = _clock()
        with tf.control_dependencies([began]):
            splits = tf.stack([count if place == self._other else 0 for place in range(2)])
            received, _ = hvd.alltoall(rows, splits=splits, name=f"pipeline.{self._pair}.{kind}", process_set=self._process_set)
        with tf.control_dependencies([received]):
            done = self._waited_seconds.assign_add(_clock() - began)
        return received, done.op


class NeighbourByMpi(Neighbour):
    """Point to point, where MPI launches.

    A graph receives once and sends once, what it made of that. A rank that waits holds the thread that would start its reductions;
    no other rank needs these before it sends what this one waits for.
    """

    def __init__(self, link: Link, wire: Wire) -> None:
        super().__init__(wire)
        self._link = link

    def take_waited_seconds(self) -> float:
        return self._link.take_waited_seconds()

    def _send(self, rows: tf.Tensor, kind: Kind) -> tf.Operation:
        def send(rows: NDArray[Any]) -> np.bool_:
            # The array holds on to the tensor's memory until it has left.
            self._link.send(rows, kind)
            return np.True_

        return tf.numpy_function(send, (rows,), tf.bool).op

    def _receive(self, shape: tf.Tensor, kind: Kind) -> tf.Tensor:
        def receive(shape: NDArray[np.int32]) -> NDArray[Any]:
            received = np.empty(shape, self._wire.dtype.as_numpy_dtype)
            self._link.receive(received, kind)
            return received

        return tf.numpy_function(receive, (shape,), self._wire.dtype)


def _clock() -> tf.Tensor:
    """Seconds, when the graph gets there. TensorFlow's own clock is refused where operations are to be deterministic."""
    return tf.numpy_function(time.perf_counter, (), tf.float64)


def neighbour(group: Group, link: Link | None, wire: Wire) -> Neighbour:
    """The other rank of `group`, by the link to it if there is one."""
    return NeighbourByMpi(link, wire) if link else NeighbourByAlltoall(group, wire)


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
