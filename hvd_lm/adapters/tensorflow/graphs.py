"""Functions as TensorFlow's graphs. Their loops and conditions are TensorFlow's own already."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed

with native_stderr_closed():
    import tensorflow as tf

# AutoGraph would find nothing to convert, in 3 seconds of every start.
graph_function = partial(tf.function, autograph=False)
"""As `tf.function`."""


class Graph:
    """A function as the graph of one signature, made when it is called first.

    A `tf.function` looks at every call for the graph that fits, which takes a third of a millisecond even where there is only one.
    """

    def __init__(self, function: Callable[..., Any], signature: tuple[Any, ...] | list[Any]) -> None:
        """`signature`: specs of the arguments, which come by position, and structures of them."""
        self._function, self._signature = function, signature
        self._graph: Callable[..., Any] | None = None
        self.traces = 0
        """How often the function was gone through."""

    def __call__(self, *arguments: Any) -> Any:
        if self._graph is None:
            self._graph = graph_function(self._trace, input_signature=self._signature).get_concrete_function()
        return self._graph(*arguments)

    def _trace(self, *arguments: Any) -> Any:
        # What arguments of the function are bound already, TensorFlow would look for again: here it sees none.
        self.traces += 1
        return self._function(*arguments)
