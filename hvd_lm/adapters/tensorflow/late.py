"""Gradients that are applied one optimizer step late: they lie in variables of their own, beside those of the next window."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from hvd_lm.adapters.base import Applied
from hvd_lm.adapters.tensorflow.graphs import graph_function
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.reducer import GradientReducer
from hvd_lm.adapters.tensorflow.update import Update
from hvd_lm.adapters.tensorflow.weight import Gradient, Weight

with native_stderr_closed():
    import tensorflow as tf


class LateUpdate:
    """Gradients of `weights`, each window's applied by the step of the next one."""

    def __init__(self, weights: Mapping[str, Weight], reducer: GradientReducer, update: Update) -> None:
        self._update, self._reducer = update, reducer
        self._pairs = [(weight, Gradient(weight.share)) for weight in weights.values()]
        """Of each weight the gradient that is at work, and the one on its way."""
        self._exchange = graph_function(self._exchange_graph)
        self._reduce = graph_function(self._reduce_graph)
        self._how: tuple[float, float | None, float] | None = None
        """Learning rate, clip and unscale of what is on its way."""
        self._reduction: Future[None] | None = None
        self._waited_seconds = 0.0
        # A graph returns when all of it is done, and the next window is not to wait for it.
        self._thread = ThreadPoolExecutor(1, "late gradients")

    def step(self, learning_rate: float, clip: float | None, unscale: float, *, trusted: bool) -> tuple[Applied, int]:
        """Apply the gradients of the window before, and start the reduction of this one's if they are `trusted`.

        Also returns the bytes of that. Collective.
        """
        touched = self._reducer.touched()
        outcome = self.catch_up() or Applied(0.0, applied=True)
        if not trusted:
            return Applied(outcome.norm, applied=False), 0
        self._how, sent = (learning_rate, clip, unscale), 0
        if self._reducer.communicates:
            reduce = self._reduce.get_concrete_function(touched)  # made here: the thread does nothing but wait
            self._reduction = self._thread.submit(lambda: reduce(touched))
            sent = sum(self._reducer.size(late, touched) for _, late in self._pairs)
        return outcome, sent

    def catch_up(self, *, apply: bool = True) -> Applied | None:
        """Apply the gradients that are on their way, or drop them; None if there are none. Collective.

        Those of the weights are on their way then, in their place.
        """
        if self._reduction:
            began = time.perf_counter()
            self._reduction.result()
            self._reduction = None
            self._waited_seconds += time.perf_counter() - began
        self._exchange()
        if not self._how:
            return None
        how, self._how = self._how, None
        return self._update.apply(*how, trusted=apply)

    def take_waited_seconds(self) -> float:
        """For what was on its way, since this was last asked."""
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited

    def _exchange_graph(self) -> None:
        """Without a copy."""
        for weight, late in self._pairs:
            own, arrived = weight.take_gradient(), late.take_gradient()
            weight.gradient.assign(arrived)
            late.gradient.assign(own)

    def _reduce_graph(self, touched: Mapping[str, tf.Tensor]) -> None:
        for _, late in self._pairs:
            self._reducer.start(late, touched, way="exact")
        self._reducer.take_bytes_sent()
