"""The canonical weights: names, shapes and initial values in NumPy, the same for every framework.

    embedding              [V, E]
    lstm.<l>.input_kernel      [4H, D]   D = E in layer 0, H above; gates in the order i, f, g, o
    lstm.<l>.recurrent_kernel  [4H, H]
    lstm.<l>.bias              [4H]      one bias (PyTorch's second one is fixed at zero)
    output_kernel          [V, H]    absent if tied to the embedding
    output_bias            [V]

All float32. Checkpoints hold them under these names, optimizer moments too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig
from hvd_lm.errors import CheckpointError, ConfigError

Array = NDArray[np.float32]
Weights = dict[str, Array]

_EMBEDDING_RANGE = 0.1


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of the model, in the order of the forward pass.

    Raises ConfigError if the vocabulary size is still open.
    """
    if config.vocabulary_size is None:
        raise ConfigError("the model needs a vocabulary size: set vocabulary_size, or train a tokenizer first")
    vocabulary, hidden = config.vocabulary_size, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocabulary, config.embedding_size)}
    for layer in range(config.layers):
        width = config.embedding_size if layer == 0 else hidden
        shapes[f"lstm.{layer}.input_kernel"] = (4 * hidden, width)
        shapes[f"lstm.{layer}.recurrent_kernel"] = (4 * hidden, hidden)
        shapes[f"lstm.{layer}.bias"] = (4 * hidden,)
    if not config.tie_embedding:
        shapes["output_kernel"] = (vocabulary, hidden)
    shapes["output_bias"] = (vocabulary,)
    return shapes


class InitialWeights(Mapping[str, Array]):
    """Uniform in +-1/sqrt(H) for the LSTM (PyTorch's default), in +-0.1 for embedding and output kernel, zero output bias.

    Each is drawn when it is asked for, so that no second copy of the model is in memory while a framework takes them over.
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._shapes = weight_shapes(config)
        self._lstm_range = 1.0 / math.sqrt(config.hidden_size)
        self._seeds = dict(zip(self._shapes, np.random.SeedSequence(seed).spawn(len(self._shapes)), strict=True))

    def __getitem__(self, name: str) -> Array:
        bound = 0.0 if name == "output_bias" else self._lstm_range if name.startswith("lstm.") else _EMBEDDING_RANGE
        values: Array = np.random.Generator(np.random.PCG64(self._seeds[name])).random(self._shapes[name], np.float32)
        # In place: the temporary arrays would be as large as the largest weight.
        values *= 2
        values -= 1
        values *= np.float32(bound)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def initial_weights(config: ModelConfig, seed: int) -> Weights:
    """All of `InitialWeights` at once."""
    return dict(InitialWeights(config, seed))


def check_weights(weights: Mapping[str, Array], config: ModelConfig) -> None:
    """Raises CheckpointError if names, shapes or number formats are not those of the model."""
    expected = weight_shapes(config)
    if missing := sorted(set(expected) - set(weights)):
        raise CheckpointError(f"the weights lack {', '.join(missing)}: they are of another model")
    if surplus := sorted(set(weights) - set(expected)):
        raise CheckpointError(f"the weights hold {', '.join(surplus)}, which the model does not have")
    for name, shape in expected.items():
        weight = weights[name]
        if weight.shape != shape:
            raise CheckpointError(f"{name} has shape {list(weight.shape)}, the model wants {list(shape)}")
        if weight.dtype != np.float32:
            raise CheckpointError(f"{name} is {weight.dtype}, canonical weights are float32")
