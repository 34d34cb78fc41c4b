"""A weight and the gradient that it collects over a window, as TensorFlow's variables."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.model.split import Share
from hvd_lm.model.weights import Array

with native_stderr_closed():
    import tensorflow as tf


class Gradient:
    """Of what this rank holds of a parameter of the model."""

    def __init__(self, share: Share, *, by_rows: bool = False) -> None:
        """With `by_rows` it is zeros between windows: the update clears the rows that a window touched."""
        self.share, self.by_rows = share, by_rows
        self.name, self.shape = share.parameter.name, share.shape
        # Empty but within a window: what works in the memory of a gradient takes it out.
        rest = self.shape[1:]
        begun = tf.zeros(self.shape if by_rows else (0, *rest))
        self.gradient = tf.Variable(begun, name=f"gradient_{self.name}", trainable=False, shape=(None, *rest))

    def zero_gradient(self) -> None:
        if self.by_rows:
            return
        # What tf.zeros makes becomes a constant of the graph, which stays in memory.
        self.gradient.assign(tf.raw_ops.Empty(shape=self.shape, dtype=tf.float32, init=True))

    def take_gradient(self) -> tf.Tensor:
        """For an operation that may work in its memory; `gradient` is empty until it is assigned."""
        gradient = self.gradient.read_value()
        with tf.control_dependencies([gradient]):
            emptied = self.gradient.assign(tf.zeros((0, *self.shape[1:])))
        with tf.control_dependencies([emptied]):
            return tf.ensure_shape(tf.identity(gradient), (None, *self.shape[1:]))


class Weight(Gradient):
    """What this rank holds of a parameter, and its gradient; the stages that use it share it."""

    def __init__(self, share: Share, *, by_rows: bool = False) -> None:
        super().__init__(share, by_rows=by_rows)
        # No page is touched before the values come.
        empty = tf.raw_ops.Empty(shape=self.shape, dtype=tf.float32)
        self.stored = tf.Variable(empty, name=self.name, trainable=False)

    @property
    def value(self) -> tf.Variable | tf.Tensor:
        """What stages compute with."""
        return self.stored

    def pulled_back(self, gradient: tf.Tensor) -> tf.Tensor:
        """The gradient by what is stored, of one by `value`."""
        return gradient


class Arriving:
    """Values of a weight, or of a moment, that come block by block."""

    def __init__(self, share: Share) -> None:
        self._rows, self._left = share.rows, len(share.rows)
        # TensorFlow copies what is not aligned to 64 bytes. The rest it takes over, and the heap keeps what is free below it.
        room = np.empty(math.prod(share.shape) + 1, np.float32)
        first = int(room.ctypes.data % 64 == 0)
        self.values: Array = room[first : first + math.prod(share.shape)].reshape(share.shape)

    def add(self, start: int, values: Array) -> bool:
        """Row `start` of the canonical weight, and following; whether all are there now."""
        self.values[start - self._rows.start :][: len(values)] = values
        self._left -= len(values)
        return self._left == 0


Send = Callable[[Weight], Iterable[tf.Tensor]]
"""Starts the reduction of a gradient; returns what travels."""


class Accumulation:
    """Where the stages of a backward put the gradients of their weights, while its graph is made."""

    def __init__(self, uses: Iterable[Weight], *, first: bool, send: Send) -> None:
        """`uses`: the weights of all stages; one that two stages share is there twice, and complete after both.

        The `first` backward of a window begins its gradient; the others add to it.
        """
        self._uses = Counter(weight.name for weight in uses)
        self._begun = set() if first else set(self._uses)
        self._send = send
        self.sent: list[tf.Tensor] = []
        """What has left for the other ranks."""
        self.complete_at: tf.Tensor | None = None
        """When the last gradient was: seconds since 1970, float64."""
        self.touched: dict[str, list[tf.Tensor]] = {}
        """Rows to which stages added, of weights of which they know."""

    def begin(self, weight: Weight) -> tf.Variable:
        """The gradient to add to: zeros, unless something has been added."""
        if weight.name not in self._begun:
            weight.zero_gradient()
            self._begun.add(weight.name)
        return weight.gradient

    def add(self, weight: Weight, gradient: tf.Tensor) -> None:
        """Without a pass over zeros, where it is the first."""
        assign = weight.gradient.assign_add if weight.name in self._begun else weight.gradient.assign
        assign(weight.pulled_back(gradient))
        self._begun.add(weight.name)

    def touch(self, weight: Weight, rows: tf.Tensor) -> None:
        """A stage has added to these rows alone."""
        self.touched.setdefault(weight.name, []).append(rows)

    def complete(self, *weights: Weight) -> None:
        """A stage has added all that it has; the last one of a weight lets it go."""
        for weight in weights:
            self._uses[weight.name] -= 1
            if not self._uses[weight.name]:
                if not any(self._uses.values()):
                    self.complete_at = _time_after(weight)
                self.sent.extend(self._send(weight))


def _time_after(weight: Weight) -> tf.Tensor:
    """When all that has been added to its gradient is there. TensorFlow's own clock is refused where sums are deterministic."""
    with tf.control_dependencies([tf.gather(weight.gradient, [0])]):
        return tf.ensure_shape(tf.numpy_function(time.time, [], tf.float64), ())


def to_numpy(variables: Mapping[str, tf.Variable], *, copy: bool = True) -> dict[str, Array]:
    """Without `copy` read-only, and never changed: an update finds the buffer in use and takes another one."""
    if copy:
        return {name: variable.numpy() for name, variable in variables.items()}
    return {name: np.asarray(memoryview(variable.read_value())) for name, variable in variables.items()}
