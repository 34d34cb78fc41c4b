"""What every stage of a model does in TensorFlow: a forward that leaves a tape, and a backward that several micro-batches share.

    outputs, state, tape = stage.forward(inputs, state, noise)              # once for each micro-batch
    gradient_by_inputs = stage.backward(tapes, gradient, accumulation)      # of all, side by side

Stages become graphs: what a micro-batch leaves is returned, never kept, and its specs let one graph serve all lengths.

Shapes: K micro-batches, T time, B sequences, D input width, H units or output width. A micro-batch's sequences stand side by side
with those of the others in the backward: [T, K*B, ...], so that no gradient passes from one to the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight

with native_stderr_closed():
    import tensorflow as tf

Tensors: TypeAlias = tuple[tf.Tensor, ...]
Specs: TypeAlias = tuple[tf.TensorSpec, ...]
Tape: TypeAlias = Any
"""What the backward of a stage needs of a forward: a tuple of tensors that only the stage looks into."""


class Forwarded(NamedTuple):
    """What a forward gives."""

    outputs: tf.Tensor
    """[T, B, H]"""
    state: Tensors
    """After the last token."""
    tape: Tape


class Stage(ABC):
    """One stage; it is given its weights, which other stages may share."""

    weights: Sequence[Weight] = ()
    units = 0
    """Width of h, and of c, in its state; 0 if it has none."""
    reads_tokens = False
    """Whether its `noise` is the tokens of the micro-batch, [T, B], also where no backward will follow."""
    noise_specs: Specs = ()
    """Of the noise that a micro-batch brings for this stage."""
    tape_specs: Tape = ()
    """Of a tape, for any T and B."""

    @property
    def state_specs(self) -> Specs:
        """h and c, [B, H] each; nothing of a stage without state."""
        return (tf.TensorSpec((None, self.units), tf.float32),) * 2 if self.units else ()

    @abstractmethod
    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        """Of inputs [T, B, D]."""

    def infer(self, inputs: tf.Tensor, state: Tensors) -> tuple[tf.Tensor, Tensors]:
        """Outputs and the state after, where no backward will follow: without noise."""
        outputs, state, _ = self.forward(inputs, state, ())
        return outputs, state

    @abstractmethod
    def backward(self, tapes: Sequence[Tape], gradient: tf.Tensor, accumulation: Accumulation) -> tf.Tensor:
        """[T, K*B, D] by the inputs; `gradient` is by the outputs, [T, K*B, H].

        Adds to the gradients of the weights, and says so as soon as they are complete.
        """


def side_by_side(tapes: Sequence[Tape], axes: Sequence[int]) -> Any:
    """Tapes of micro-batches as one with the sequences of all; `axes`: where each of its tensors has the sequences."""
    if len(tapes) == 1:
        return tapes[0]
    joined = [tf.concat(tensors, axis) for tensors, axis in zip(zip(*tapes, strict=True), axes, strict=True)]
    kind = type(tapes[0])
    return kind(*joined) if hasattr(kind, "_fields") else tuple(joined)
