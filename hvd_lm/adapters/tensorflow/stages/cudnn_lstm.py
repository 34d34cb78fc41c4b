"""cuDNN's LSTM layer, with the gradient that cuDNN has: what a GPU takes.

cuDNN wants all weights in one flat tensor: 4 input kernels, 4 recurrent kernels, 4 input biases, 4 recurrent biases, gates in the
order i, f, g, o. The input biases are zeros and are not trained: with two biases Adam would walk twice as fast.

Shapes: T time, B sequences, D input width, H units, P all values of the layer with both biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Stage, Tensors
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight

with native_stderr_closed():
    import tensorflow as tf


def pack(input_4HD: tf.Tensor, recurrent_4HH: tf.Tensor, bias_4H: tf.Tensor) -> tf.Tensor:
    """Canonical weights as cuDNN's, [P]."""
    return tf.concat([tf.reshape(input_4HD, (-1,)), tf.reshape(recurrent_4HH, (-1,)), tf.zeros_like(bias_4H), bias_4H], 0)


def unpack(packed_P: tf.Tensor, width: int, units: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The inverse of `pack`; the input biases are dropped."""
    sizes = [4 * units * width, 4 * units * units, 4 * units, 4 * units]
    input_kernel, recurrent_kernel, _, bias_4H = tf.split(packed_P, sizes)
    return tf.reshape(input_kernel, (4 * units, width)), tf.reshape(recurrent_kernel, (4 * units, units)), bias_4H


class Tape(NamedTuple):
    """What the backward of a layer needs of its forward."""

    inputs_TBD: tf.Tensor
    h_1BH: tf.Tensor
    c_1BH: tf.Tensor
    outputs_TBH: tf.Tensor
    h_after_1BH: tf.Tensor
    c_after_1BH: tf.Tensor
    reserve: tf.Tensor
    """Opaque: cuDNN's own."""
    host_reserve: tf.Tensor
    """The same."""


class CudnnLstm(Stage):
    """A layer; its state is h and c. Micro-batches go backward one by one: what cuDNN reserves belongs to one forward."""

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        """`weights` by role, as the stage declares them (hvd_lm.model.stages)."""
        self.weights = tuple(weights[role] for role in ("input_kernel", "recurrent_kernel", "bias"))
        input_kernel, recurrent_kernel, _ = self.weights
        self._width, self.units = input_kernel.shape[1], recurrent_kernel.shape[1]
        inputs, outputs = (tf.TensorSpec((None, None, width), tf.float32) for width in (self._width, self.units))
        state = tf.TensorSpec((1, None, self.units), tf.float32)
        opaque = (tf.TensorSpec(None, tf.float32), tf.TensorSpec(None, tf.int8))
        self.tape_specs = Tape(inputs, state, state, outputs, state, state, *opaque)

    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        tape = self._run(inputs, state, training=True)
        return Forwarded(tape.outputs_TBH, (tape.h_after_1BH[0], tape.c_after_1BH[0]), tape)

    def infer(self, inputs: tf.Tensor, state: Tensors) -> tuple[tf.Tensor, Tensors]:
        tape = self._run(inputs, state, training=False)
        return tape.outputs_TBH, (tape.h_after_1BH[0], tape.c_after_1BH[0])

    def _run(self, inputs_TBD: tf.Tensor, state: Tensors, *, training: bool) -> Tape:
        h_1BH, c_1BH = (tensor[None] for tensor in state)
        ran = tf.raw_ops.CudnnRNNV2(
            input=inputs_TBD, input_h=h_1BH, input_c=c_1BH, params=self._packed(), rnn_mode="lstm", is_training=training
        )
        return Tape(inputs_TBD, h_1BH, c_1BH, ran.output, ran.output_h, ran.output_c, ran.reserve_space, ran.host_reserved)

    def backward(self, tapes: Sequence[Tape], gradient: tf.Tensor, accumulation: Accumulation) -> tf.Tensor:
        """None goes to the state before."""
        packed = self._packed()
        by_inputs, by_packed = [], []
        for tape, gradient_TBH in zip(tapes, tf.split(gradient, len(tapes), axis=1), strict=True):
            by = tf.raw_ops.CudnnRNNBackpropV2(
                input=tape.inputs_TBD,
                input_h=tape.h_1BH,
                input_c=tape.c_1BH,
                params=packed,
                output=tape.outputs_TBH,
                output_h=tape.h_after_1BH,
                output_c=tape.c_after_1BH,
                output_backprop=gradient_TBH,
                output_h_backprop=tf.zeros_like(tape.h_after_1BH),
                output_c_backprop=tf.zeros_like(tape.c_after_1BH),
                reserve_space=tape.reserve,
                host_reserved=tape.host_reserve,
                rnn_mode="lstm",
            )
            by_inputs.append(by.input_backprop)
            by_packed.append(by.params_backprop)
        by_weights = unpack(tf.add_n(by_packed), self._width, self.units)
        for weight, by_weight in zip(self.weights, by_weights, strict=True):
            accumulation.add(weight, by_weight)
        accumulation.complete(*self.weights)
        return tf.concat(by_inputs, 1)

    def _packed(self) -> tf.Tensor:
        return pack(*(tf.convert_to_tensor(weight.value) for weight in self.weights))
