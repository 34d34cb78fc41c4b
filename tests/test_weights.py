"""The canonical weights: names, shapes, initial values, and what does not fit a model."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hvd_lm.config import ModelConfig
from hvd_lm.errors import CheckpointError, ConfigError
from hvd_lm.model.stages import parameters
from hvd_lm.model.weights import check_weights, initial_rows, initial_weights, stage_weights

MODEL = ModelConfig(vocabulary_size=11, embedding_size=3, hidden_size=5, layers=2)
TIED = ModelConfig(vocabulary_size=11, embedding_size=5, hidden_size=5, layers=1, tie_embedding=True)
TAPERED = replace(MODEL, hidden_size=(6, 4))
PROJECTED = replace(MODEL, layers=3, projection_size=3)
MULTIPLICATIVE = replace(MODEL, hidden_size=(6, 4), cell="mlstm")
ADAPTIVE = replace(MODEL, softmax="adaptive", adaptive_cutoffs=(4, 7), adaptive_division=2)


def shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: parameter.shape for name, parameter in parameters(model).items()}


def test_names_and_shapes_in_the_order_of_the_forward_pass() -> None:
    assert list(shapes(MODEL).items()) == [
        ("embedding", (11, 3)),
        ("lstm.0.input_kernel", (20, 3)),
        ("lstm.0.recurrent_kernel", (20, 5)),
        ("lstm.0.bias", (20,)),
        ("lstm.1.input_kernel", (20, 5)),
        ("lstm.1.recurrent_kernel", (20, 5)),
        ("lstm.1.bias", (20,)),
        ("output_kernel", (11, 5)),
        ("output_bias", (11,)),
    ]


def test_tied_model_has_no_output_kernel() -> None:
    assert list(shapes(TIED)) == [
        "embedding",
        "lstm.0.input_kernel",
        "lstm.0.recurrent_kernel",
        "lstm.0.bias",
        "output_bias",
    ]


def test_layers_have_widths_of_their_own() -> None:
    assert list(shapes(TAPERED).items()) == [
        ("embedding", (11, 3)),
        ("lstm.0.input_kernel", (24, 3)),
        ("lstm.0.recurrent_kernel", (24, 6)),
        ("lstm.0.bias", (24,)),
        ("lstm.1.input_kernel", (16, 6)),
        ("lstm.1.recurrent_kernel", (16, 4)),
        ("lstm.1.bias", (16,)),
        ("output_kernel", (11, 4)),
        ("output_bias", (11,)),
    ]


def test_multiplicative_lstm_has_two_more_kernels_a_layer() -> None:
    assert list(shapes(MULTIPLICATIVE).items()) == [
        ("embedding", (11, 3)),
        ("lstm.0.input_kernel", (24, 3)),
        ("lstm.0.recurrent_kernel", (24, 6)),
        ("lstm.0.bias", (24,)),
        ("lstm.0.multiplicative_input_kernel", (6, 3)),
        ("lstm.0.multiplicative_recurrent_kernel", (6, 6)),
        ("lstm.1.input_kernel", (16, 6)),
        ("lstm.1.recurrent_kernel", (16, 4)),
        ("lstm.1.bias", (16,)),
        ("lstm.1.multiplicative_input_kernel", (4, 6)),
        ("lstm.1.multiplicative_recurrent_kernel", (4, 4)),
        ("output_kernel", (11, 4)),
        ("output_bias", (11,)),
    ]


@pytest.mark.parametrize("model", [MODEL, TIED, MULTIPLICATIVE, replace(MODEL, dropout=0.5)])
def test_stages_share_out_all_weights(model: ModelConfig) -> None:
    weights = initial_weights(model, seed=1)
    lookup, *cells, output = stage_weights(weights, model)
    assert lookup["table"] is weights["embedding"]
    assert output["kernel"] is weights["embedding" if model.tie_embedding else "output_kernel"]
    assert [cell.stage.units for cell in cells] == list(model.units)
    for layer, cell in enumerate(cells):
        assert cell.values == {name.removeprefix(f"lstm.{layer}."): w for name, w in weights.items() if f".{layer}." in name}


def test_reference_model_has_its_known_size() -> None:
    """V 10000, E 300, H 1024, 2 layers: 3.0 M + 5.43 M + 8.39 M + 10.25 M parameters, one bias per gate."""
    sizes = [math.prod(shape) for shape in shapes(ModelConfig(vocabulary_size=10_000)).values()]
    assert sum(sizes) == 10_000 * 300 + 4 * 1024 * (300 + 1024 + 1) + 4 * 1024 * (1024 + 1024 + 1) + 10_000 * (1024 + 1)


def test_open_vocabulary_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocabulary"):
        parameters(replace(MODEL, vocabulary_size=None))
    with pytest.raises(ConfigError, match="vocabulary"):
        initial_weights(replace(MODEL, vocabulary_size=None), seed=1)


@pytest.mark.parametrize("model", [MODEL, TIED, TAPERED, MULTIPLICATIVE, ADAPTIVE])
def test_initial_weights_fit_the_model(model: ModelConfig) -> None:
    weights = initial_weights(model, seed=1)
    assert {name: array.shape for name, array in weights.items()} == shapes(model)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    check_weights(weights, model)


def test_same_seed_same_weights() -> None:
    first, second = initial_weights(MODEL, seed=7), initial_weights(MODEL, seed=7)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_other_seed_other_weights() -> None:
    first, second = initial_weights(MODEL, seed=7), initial_weights(MODEL, seed=8)
    for name in set(first) - {"output_bias"}:
        assert not np.array_equal(first[name], second[name])


@pytest.mark.parametrize(
    ("model", "digest"),
    [
        (MODEL, "4c226773e205206a9273e6623064154523f6831840ea898cce6d1f996d44a539"),
        (TIED, "e1e2df1a8973b3b9f76cdd35cd0b4dfe863bcb3c6ce7a5c8c2ac4554732b4a15"),
    ],
    ids=["plain", "tied"],
)
def test_initial_values_are_those_of_earlier_versions(model: ModelConfig, digest: str) -> None:
    """Of the first format: a seed gives the same model as it always did, bit for bit."""
    content = hashlib.sha256()
    for name, array in initial_weights(model, seed=7).items():
        content.update(name.encode() + array.astype("<f4").tobytes())
    assert content.hexdigest() == digest


@pytest.mark.parametrize(
    ("change", "others"),
    [
        ({"cell": "mlstm"}, set()),
        ({"cell": "mlstm", "weight_normalization": True}, set()),
        ({"projection_size": 3}, {"lstm.0.recurrent_kernel", "lstm.1.input_kernel", "lstm.1.recurrent_kernel", "output_kernel"}),
        ({"dropout": 0.5}, set()),
        ({"layers": 4}, {"output_kernel"}),  # its key counts the layers
        ({"hidden_size": (5, 7)}, {"lstm.1.input_kernel", "lstm.1.recurrent_kernel", "lstm.1.bias", "output_kernel"}),
        ({"vocabulary_size": 12}, {"embedding", "output_kernel", "output_bias"}),
    ],
    ids=["cell", "normalized", "projection", "dropout", "layers", "widths", "vocabulary"],
)
def test_parameters_that_two_models_share_begin_alike(change: dict[str, Any], others: set[str]) -> None:
    first, second = initial_weights(MODEL, seed=7), initial_weights(replace(MODEL, **change), seed=7)
    assert set(first) <= set(second)
    assert {name for name in first if not np.array_equal(first[name], second[name])} == others


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        TIED,
        ADAPTIVE,
        replace(MULTIPLICATIVE, weight_normalization=True),
        replace(MODEL, layers=6),
        replace(MULTIPLICATIVE, hidden_size=5, layers=6),
        PROJECTED,
    ],
)
def test_no_two_parameters_have_a_seed_in_common(model: ModelConfig) -> None:
    keys = [parameter.seed_key for parameter in parameters(model).values()]
    assert len(set(keys)) == len(keys)


def test_gains_begin_as_the_norms_of_their_kernels_rows() -> None:
    """So that the model is what it would be without; also where they are read in part."""
    model = replace(MULTIPLICATIVE, weight_normalization=True, initial_range=0.3)
    weights, rows = initial_weights(model, seed=7), initial_rows(model, seed=7)
    gains = [name for name in weights if name.endswith(".gain")]
    assert len(gains) == 8
    for name in gains:
        norms = np.linalg.norm(weights[name.removesuffix(".gain")], axis=1)
        np.testing.assert_array_equal(weights[name], norms)
        np.testing.assert_array_equal(rows[name][1:3], norms[1:3])
        assert weights[name].dtype == np.float32


def test_initial_values_fill_their_range() -> None:
    model = ModelConfig(vocabulary_size=500, embedding_size=64, hidden_size=100, layers=2)
    for name, array in initial_weights(model, seed=3).items():
        if name == "output_bias":
            np.testing.assert_array_equal(array, 0)
            continue
        bound = 0.1  # 1 / sqrt(100) for the LSTM, too
        assert np.abs(array).max() <= bound * (1 + 1e-6)
        assert array.min() < -0.95 * bound
        assert array.max() > 0.95 * bound
        assert abs(float(array.mean())) < 0.1 * bound


def test_a_range_for_all_kernels_and_a_bias_of_the_forget_gates() -> None:
    model = replace(MULTIPLICATIVE, initial_range=0.05, forget_bias=1.0)
    usual = initial_weights(MULTIPLICATIVE, seed=3)
    for name, array in initial_weights(model, seed=3).items():
        if name.startswith("lstm") and name.endswith("bias"):
            gates = array.reshape(4, -1)
            np.testing.assert_array_equal(gates, np.repeat([[0.0], [1.0], [0.0], [0.0]], gates.shape[1], axis=1))
        elif name.endswith("bias"):
            assert not array.any()
        else:
            assert 0.03 < np.abs(array).max() <= 0.05
            scaled = usual[name] * (np.abs(array).max() / np.abs(usual[name]).max())
            np.testing.assert_allclose(array, scaled, rtol=1e-4, atol=1e-9)


def test_rows_of_a_bias_are_those_of_the_whole() -> None:
    (rows,) = (rows for name, rows in initial_rows(replace(MODEL, forget_bias=2.0), 3).items() if name == "lstm.0.bias")
    for start in range(0, rows.shape[0], 3):
        np.testing.assert_array_equal(rows[start : start + 3], rows[:][start : start + 3])


def test_range_of_the_lstm_follows_its_units() -> None:
    model = ModelConfig(vocabulary_size=50, embedding_size=64, hidden_size=16, layers=1)
    weights = initial_weights(model, seed=3)
    assert 0.24 < np.abs(weights["lstm.0.recurrent_kernel"]).max() <= 0.25
    assert np.abs(weights["embedding"]).max() <= 0.1


# --- check_weights ---------------------------------------------------------------------------------------


def refusal(weights: dict[str, np.ndarray], model: ModelConfig) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_weights(weights, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", list(shapes(MODEL)))
def test_missing_weight_is_named(name: str) -> None:
    weights = initial_weights(MODEL, seed=1)
    del weights[name]
    assert name in refusal(weights, MODEL)


def test_surplus_weight_is_named() -> None:
    weights = initial_weights(MODEL, seed=1) | {"lstm.2.bias": np.zeros(20, np.float32)}
    assert "lstm.2.bias" in refusal(weights, MODEL)


@pytest.mark.parametrize("name", [name for name, shape in shapes(MODEL).items() if len(set(shape)) == 2])
def test_transposed_weight_is_named_with_both_shapes(name: str) -> None:
    weights = initial_weights(MODEL, seed=1)
    weights[name] = weights[name].T
    message = refusal(weights, MODEL)
    assert name in message
    assert str(list(weights[name].shape)) in message
    assert str(list(shapes(MODEL)[name])) in message


def test_weights_of_another_cell_are_refused() -> None:
    assert "lstm.0.multiplicative_input_kernel" in refusal(initial_weights(MULTIPLICATIVE, seed=1), TAPERED)
    assert "lstm.0.multiplicative_input_kernel" in refusal(initial_weights(TAPERED, seed=1), MULTIPLICATIVE)


def test_weights_of_a_larger_vocabulary_are_refused() -> None:
    assert "embedding" in refusal(initial_weights(replace(MODEL, vocabulary_size=12), seed=1), MODEL)


def test_untied_weights_do_not_fit_a_tied_model() -> None:
    assert "output_kernel" in refusal(initial_weights(replace(TIED, tie_embedding=False), seed=1), TIED)
