"""Horovod's collective operations in TensorFlow, ready to be timed."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from hvd_lm.adapters.probe import Action, Probe
from hvd_lm.adapters.tensorflow.graphs import graph_function
from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed

with native_stderr_closed():
    import horovod.tensorflow as hvd
    import tensorflow as tf


class TensorFlowProbe(Probe):
    """All-reduces are part of a graph, as those of gradients are."""

    def sums(self, arrays: list[NDArray[Any]], name: str) -> Action:
        tensors = [self._tensor(array) for array in arrays]

        def act() -> list[tf.Tensor]:
            return [hvd.allreduce(tensor, name=f"{name}.{i}", op=hvd.Sum) for i, tensor in enumerate(tensors)]

        return graph_function(act)  # type: ignore[no-any-return]

    def _tensor(self, values: NDArray[Any]) -> tf.Tensor:
        return tf.constant(values)
