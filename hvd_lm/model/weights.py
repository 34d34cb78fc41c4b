"""Canonical weights as NumPy arrays: initial values, and whether some fit a model. Names and shapes: `parameters`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig
from hvd_lm.errors import CheckpointError
from hvd_lm.model.stages import parameters

Array = NDArray[np.float32]
Weights = dict[str, Array]


class InitialWeights(Mapping[str, Array]):
    """Uniform values in the range of each parameter, from the seed and the parameter's key alone.

    Each is drawn when it is asked for, so that no second copy of the model is in memory while a framework takes them over.
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._parameters = parameters(config)
        self._seed = seed

    def __getitem__(self, name: str) -> Array:
        parameter = self._parameters[name]
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=parameter.seed_key)))
        values: Array = generator.random(parameter.shape, np.float32)
        # In place: the temporary arrays would be as large as the largest weight.
        values *= 2
        values -= 1
        values *= np.float32(parameter.initial_range)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def initial_weights(config: ModelConfig, seed: int) -> Weights:
    """All of `InitialWeights` at once."""
    return dict(InitialWeights(config, seed))


def check_weights(weights: Mapping[str, Array], config: ModelConfig) -> None:
    """Raises CheckpointError if names, shapes or number formats are not those of the model."""
    expected = parameters(config)
    if missing := sorted(set(expected) - set(weights)):
        raise CheckpointError(f"the weights lack {', '.join(missing)}: they are of another model")
    if surplus := sorted(set(weights) - set(expected)):
        raise CheckpointError(f"the weights hold {', '.join(surplus)}, which the model does not have")
    for name, parameter in expected.items():
        weight = weights[name]
        if weight.shape != parameter.shape:
            raise CheckpointError(f"{name} has shape {list(weight.shape)}, the model wants {list(parameter.shape)}")
        if weight.dtype != np.float32:
            raise CheckpointError(f"{name} is {weight.dtype}, canonical weights are float32")
