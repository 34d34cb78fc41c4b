"""A stage whose gradient TensorFlow finds: what a new cell derives from. Its forward is all that is written.

The forward of the micro-batches that wait is computed again in the backward, side by side, under a tf.GradientTape.

Shapes: K micro-batches, T time, B sequences, D input width, H units.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Stage, Tape, Tensors, side_by_side
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight
from hvd_lm.model.stages import GAIN

with native_stderr_closed():
    import tensorflow as tf


class DifferentiatedStage(Stage):
    """A stage that is its forward; its tape is what went in."""

    def __init__(self, weights: Mapping[str, Weight], width: int, units: int) -> None:
        """`weights` by role, as the stage declares them (hvd_lm.model.stages)."""
        self._by_role, self.units = dict(weights), units
        self.weights = tuple(weights.values())
        self.tape_specs = (tf.TensorSpec((None, None, width), tf.float32), *self.state_specs)

    @abstractmethod
    def compute(self, inputs_TBD: tf.Tensor, state: Tensors, weights: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, Tensors]:
        """Outputs [T, B, H] and the state after."""

    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        outputs, after = self.compute(inputs, state, _as_they_multiply(self._values()))
        return Forwarded(outputs, after, (inputs, *state))

    def backward(self, tapes: Sequence[Tape], gradient: tf.Tensor, accumulation: Accumulation) -> tf.Tensor:
        inputs, *state = side_by_side(tapes, (1, 0, 0))
        values = self._values()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch((inputs, values))
            outputs, _ = self.compute(inputs, tuple(state), _as_they_multiply(values))
        by_inputs, by_values = tape.gradient(outputs, (inputs, values), gradient)
        for role, weight in self._by_role.items():
            accumulation.add(weight, by_values[role])
        accumulation.complete(*self.weights)
        return by_inputs

    def _values(self) -> dict[str, tf.Tensor]:
        return {role: tf.convert_to_tensor(weight.value) for role, weight in self._by_role.items()}


def _as_they_multiply(values: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Weights by role; under weight normalization the rows of kernels have the lengths that their gains say."""

    def kernel(role: str, value: tf.Tensor) -> tf.Tensor:
        gain = values.get(role + GAIN)
        return value if gain is None else value * (gain / tf.norm(value, axis=1))[:, None]

    return {role: kernel(role, value) for role, value in values.items() if not role.endswith(GAIN)}
