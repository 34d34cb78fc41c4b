"""Canonical weights as NumPy arrays: initial values, whether some fit a model, which are whose. Names and shapes: `parameters`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig
from hvd_lm.errors import CheckpointError
from hvd_lm.model.stages import Stage, parameters, stages

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


@dataclass(frozen=True)
class StageWeights:
    """A stage and its weights, by their role: ``layer["bias"]``."""

    stage: Stage
    values: Mapping[str, Array]

    def __getitem__(self, role: str) -> Array:
        return self.values[role]


def stage_weights(weights: Mapping[str, Array], config: ModelConfig) -> list[StageWeights]:
    """Look-up, cells and output, from below: what a model is once it is trained, when nothing drops."""
    return [
        StageWeights(stage, {role: weights[parameter.name] for role, parameter in stage.parameters.items()})
        for stage in stages(config)
        if stage.kind != "drop"
    ]
