"""Canonical weights as NumPy arrays: initial values, whether some fit a model, which are whose. Names and shapes: `parameters`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig
from hvd_lm.errors import CheckpointError
from hvd_lm.model.parameters import Parameter
from hvd_lm.model.stages import Stage, parameters, stages

Array = NDArray[np.float32]
Weights = dict[str, Array]


class Rows(Protocol):
    """Values of a parameter that can be read in part: an array, or what makes or fetches one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice, /) -> Array: ...


@dataclass(frozen=True)
class InitialRows:
    """Uniform values in the range of a parameter, from the seed and the parameter's key alone, drawn when they are asked for."""

    parameter: Parameter
    seed: int

    dtype: ClassVar[np.dtype[np.float32]] = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parameter.shape

    def __getitem__(self, rows: slice) -> Array:
        if self.parameter.norms_of:
            norms: Array = np.linalg.norm(InitialRows(self.parameter.norms_of, self.seed)[rows], axis=1)
            return norms
        start, stop, _ = rows.indices(self.shape[0])
        width = math.prod(self.shape[1:])
        bits = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=self.parameter.seed_key))
        # A state of the generator gives two float32.
        bits.advance(start * width // 2)
        generator = np.random.Generator(bits)
        if start * width % 2:
            generator.random(dtype=np.float32)
        values: Array = generator.random((max(0, stop - start), *self.shape[1:]), np.float32)
        # In place: the temporary arrays would be as large as the largest weight.
        values *= 2
        values -= 1
        values *= np.float32(self.parameter.initial_range)
        if self.parameter.forget_bias:
            quarter = self.shape[0] // 4
            values[max(0, quarter - start) : max(0, 2 * quarter - start)] += np.float32(self.parameter.forget_bias)
        return values


def initial_rows(config: ModelConfig, seed: int) -> dict[str, InitialRows]:
    """The initial values of all parameters: no second copy of the model is in memory while a framework takes them over."""
    return {name: InitialRows(parameter, seed) for name, parameter in parameters(config).items()}


def initial_weights(config: ModelConfig, seed: int) -> Weights:
    """All of `initial_rows` at once."""
    return {name: rows[:] for name, rows in initial_rows(config, seed).items()}


def check_weights(weights: Mapping[str, Rows], config: ModelConfig) -> None:
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
        if stage.parameters
    ]
