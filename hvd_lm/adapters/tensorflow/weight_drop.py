"""Recurrent weights of which training lacks some for a whole optimizer step.

DropConnect (Wan et al. 2013), in LSTMs as of Merity et al. 2017 (arXiv:1708.02182, section 2). Cells are given a stand-in for such
a weight, whose value is ``stored * mask / share kept``; the gradient by it is pulled back, by the same factor, to the stored
weight, before it is reduced. A cell that has a stand-in reads the model as a twin that has the stored weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.tensorflow.quiet import native_stderr_closed
from hvd_lm.adapters.tensorflow.stages.base import Forwarded, Stage, Tape, Tensors
from hvd_lm.adapters.tensorflow.weight import Accumulation, Weight
from hvd_lm.config import ModelConfig
from hvd_lm.model import stages as declared
from hvd_lm.model.noise import keep_probability

with native_stderr_closed():
    import tensorflow as tf


class StandIn(Weight):
    """For a weight, of which it is all but the value."""

    def __init__(self, weight: Weight, rate: float) -> None:
        """`rate`: the share that drops."""
        self.share, self.by_rows, self.name, self.shape = weight.share, weight.by_rows, weight.name, weight.shape
        self.weight, self.stored, self.gradient = weight, weight.stored, weight.gradient
        self._keep_probability = keep_probability(rate)
        self._factor = tf.Variable(tf.ones(self.shape), name=f"kept_{self.name}", trainable=False)

    def drop(self, mask: NDArray[np.bool_]) -> None:
        """From now on; True where a weight is kept."""
        self._factor.assign(mask.astype(np.float32) / np.float32(self._keep_probability))

    @property
    def value(self) -> tf.Tensor:
        return self.stored * self._factor

    def pulled_back(self, gradient: tf.Tensor) -> tf.Tensor:
        return gradient * self._factor


def stand_ins(weights: Mapping[str, Weight], rate: float) -> dict[str, StandIn]:
    """For the recurrent kernels among `weights`, by name; none if `rate` is 0."""
    return {name: StandIn(weight, rate) for name, weight in weights.items() if rate and name.endswith(".recurrent_kernel")}


class _Dropping(Stage):
    """A cell that trains with a stand-in."""

    def __init__(self, trained: Stage, read: Stage) -> None:
        self._trained, self._read = trained, read
        self.weights, self.units = trained.weights, trained.units
        self.noise_specs, self.tape_specs = trained.noise_specs, trained.tape_specs

    def forward(self, inputs: tf.Tensor, state: Tensors, noise: Tensors) -> Forwarded:
        return self._trained.forward(inputs, state, noise)

    def infer(self, inputs: tf.Tensor, state: Tensors) -> tuple[tf.Tensor, Tensors]:
        return self._read.infer(inputs, state)

    def backward(self, tapes: Sequence[Tape], gradient: tf.Tensor, accumulation: Accumulation) -> tf.Tensor:
        return self._trained.backward(tapes, gradient, accumulation)


Make = Callable[[ModelConfig, declared.Stage, Mapping[str, Weight]], Stage]


def reading_what_is_stored(make: Make) -> Make:
    """Makes the same stages; of those that are given a stand-in, such as read the stored weight."""

    def made(config: ModelConfig, stage: declared.Stage, weights: Mapping[str, Weight]) -> Stage:
        trained = make(config, stage, weights)
        stored = {role: weight.weight if isinstance(weight, StandIn) else weight for role, weight in weights.items()}
        return trained if stored == dict(weights) else _Dropping(trained, make(config, stage, stored))

    return made
