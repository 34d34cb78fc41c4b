"""Dropout, with masks that are given (hvd_lm.model.noise)."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Stage, Tape, Tensors, side_by_side
from hvd_lm.adapters.tensorflow.weight import Accumulation

with native_stderr_closed():
    import tensorflow as tf


class Drop(Stage):
    """Activations under a mask bool [T, B, D], divided by the share that masks keep.

    A mask has 1 for T where it is locked, and 1 for D where words drop.
    """

    def __init__(self, width: int, keep_probability: float) -> None:
        self._keep_probability = keep_probability
        self.noise_specs = self.tape_specs = (tf.TensorSpec((None, None, width), tf.bool),)

    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        (mask,) = noise
        return Forwarded(self._drop(inputs, mask), state, noise)

    def infer(self, inputs: tf.Tensor, state: Tensors) -> tuple[tf.Tensor, Tensors]:
        return inputs, state

    def backward(self, tapes: Sequence[Tape], gradient: tf.Tensor, accumulation: Accumulation) -> tf.Tensor:
        (mask,) = side_by_side(tapes, (1,))
        return self._drop(gradient, mask)

    def _drop(self, activations: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return activations * tf.cast(mask, tf.float32) / self._keep_probability
