"""The judge is judged: its gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import reference_lstm
from reference_lstm import Array

from hvd_lm.config import ModelConfig
from hvd_lm.model.noise import dropout_masks, dropout_widths, keep_probability
from hvd_lm.model.weights import initial_weights

ADAPTIVE = {"softmax": "adaptive", "adaptive_cutoffs": (3, 6), "adaptive_division": 2}


LAYERS = {
    "lstm": {"cell": "lstm"},
    "mlstm": {"cell": "mlstm"},
    "normalized": {"cell": "mlstm", "weight_normalization": True},
    "projected": {"projection_size": 4},
}
OUTPUTS = {"plain": {}, "tied": {"tie_embedding": True}, "adaptive": ADAPTIVE}


def assert_are_finite_differences(
    gradients: Mapping[str, Array], weights: Mapping[str, Array], loss: Callable[[], float], generator: np.random.Generator
) -> None:
    """At eight places of each of `weights`, which `loss` looks at."""
    for name, value in weights.items():
        for _ in range(8):
            index = tuple(generator.integers(0, n) for n in value.shape)
            original, epsilon = value[index], 1e-6
            value[index] = original + epsilon
            above = loss()
            value[index] = original - epsilon
            below = loss()
            value[index] = original
            np.testing.assert_allclose(gradients[name][index], (above - below) / (2 * epsilon), atol=1e-7, err_msg=name)


TRANSLATES = {"source_end": 0, "source_attention": True}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("output", {**OUTPUTS, "attention": TRANSLATES}.values(), ids=[*OUTPUTS, "attention"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_those_of_finite_differences(layer: dict[str, Any], output: dict[str, Any], dropout: float) -> None:
    width = layer.get("projection_size", 6)
    config = ModelConfig(11, width, hidden_size=(5, 6), dropout=dropout, **layer, **output)
    weights = {name: value.astype(np.float64) for name, value in initial_weights(config, seed=3).items()}
    generator = np.random.default_rng(0)
    inputs, targets = generator.integers(0, 11, (2, 4, 3), dtype=np.int32)
    targets[2, 1] = -1
    inputs[1, :2], end = 0, output.get("source_end")
    sizes = zip(config.widths, config.units, strict=True)
    state = [(generator.normal(size=(3, width)), generator.normal(size=(3, units))) for width, units in sizes]
    masks = dropout_masks(dropout, widths=dropout_widths(config), sequence_length=4, stream_ids=range(3), micro_batch=0, seed=1)

    def loss() -> float:
        return reference_lstm.run(weights, inputs, targets, state, masks, keep_probability(dropout), source_end=end).loss_sum

    gradients = reference_lstm.run(weights, inputs, targets, state, masks, keep_probability(dropout), source_end=end).gradients
    assert_are_finite_differences(gradients, weights, loss, generator)


@pytest.mark.parametrize("penalties", [(2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_gradients_of_penalties_are_those_of_finite_differences(penalties: tuple[float, float]) -> None:
    config = ModelConfig(11, 4, hidden_size=(5, 6), dropout=0.4)
    weights = {name: value.astype(np.float64) for name, value in initial_weights(config, seed=3).items()}
    generator = np.random.default_rng(0)
    inputs, targets = generator.integers(0, 11, (2, 4, 3), dtype=np.int32)
    targets[2:, 1] = -1
    masks = dropout_masks(0.4, widths=dropout_widths(config), sequence_length=4, stream_ids=range(3), micro_batch=0, seed=1)
    activation, temporal = penalties

    def outcome() -> reference_lstm.Outcome:
        return reference_lstm.run(
            weights, inputs, targets, None, masks, keep_probability(0.4), activation_penalty=activation, temporal_penalty=temporal
        )

    def minimized() -> float:
        return outcome().loss_sum + outcome().penalty

    gradients = outcome().gradients
    assert outcome().penalty > 0
    names = ("embedding", "lstm.0.recurrent_kernel", "lstm.1.input_kernel", "lstm.1.bias", "output_kernel")
    assert_are_finite_differences(gradients, {name: weights[name] for name in names}, minimized, generator)
