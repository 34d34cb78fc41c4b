"""What training minimizes beside the cross-entropy: penalties on the activations that go to the output.

Merity, McCann & Socher 2017, "Revisiting Activation Regularization for Language RNNs" (arXiv:1708.01009), AR and TAR:

    activation    factor * mean over tokens and activations of x[t]^2
    temporal      factor * mean over tokens and activations of (x[t] - x[t-1])^2

The mean is over the tokens of the window on all ranks, as that of the cross-entropy is; the first of a micro-batch has none before
it, and adds nothing. Activations go through as they are, and the loss that is told is the cross-entropy alone.

Shapes: K micro-batches, T time, B sequences, H width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Stage, Tape, Tensors, side_by_side
from hvd_lm.adapters.tensorflow.weight import Accumulation

with native_stderr_closed():
    import tensorflow as tf


class _Penalty(Stage):
    def __init__(self, width: int, factor: float) -> None:
        self._width, self._factor = width, factor
        self.noise_specs = (tf.TensorSpec((None, None), tf.float32),)
        self.tape_specs = (tf.TensorSpec((None, None, width), tf.float32), *self.noise_specs)

    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        """`noise`: [T, B], the weight of each token."""
        return Forwarded(inputs, state, (inputs, *noise))

    def infer(self, inputs: tf.Tensor, state: Tensors) -> tuple[tf.Tensor, Tensors]:
        return inputs, state

    def backward(self, tapes: Sequence[Tape], gradient: tf.Tensor, accumulation: Accumulation) -> tf.Tensor:
        inputs_TNH, weights_TN = side_by_side(tapes, (1, 1))
        return gradient + self._gradient(inputs_TNH, weights_TN[..., None] * (2 * self._factor / self._width))

    @abstractmethod
    def _gradient(self, inputs_TNH: tf.Tensor, weights_TN1: tf.Tensor) -> tf.Tensor:
        """By the inputs, of the sum of ``weights / 2 * square``; N = K*B."""


class ActivationPenalty(_Penalty):
    """Of the squares of activations."""

    def _gradient(self, inputs_TNH: tf.Tensor, weights_TN1: tf.Tensor) -> tf.Tensor:
        return inputs_TNH * weights_TN1


class TemporalPenalty(_Penalty):
    """Of the squares of what changes in activations from token to token."""

    def _gradient(self, inputs_TNH: tf.Tensor, weights_TN1: tf.Tensor) -> tf.Tensor:
        by_changes = (inputs_TNH[1:] - inputs_TNH[:-1]) * weights_TN1[1:]
        return tf.pad(by_changes, ((1, 0), (0, 0), (0, 0))) - tf.pad(by_changes, ((0, 1), (0, 0), (0, 0)))
