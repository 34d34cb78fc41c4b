"""Attention to a source: gradients, pieces of a text, sequences chosen from a state, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference_lstm
from conftest import MakeAdapter

from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.data.sources import IGNORED
from hvd_lm.errors import ConfigError
from hvd_lm.model.noise import dropout_masks, dropout_widths, keep_probability
from hvd_lm.model.weights import Weights, initial_weights

END = 3
MODEL = ModelConfig(20, embedding_size=6, hidden_size=(7, 5), dropout=0.3, source_end=END, source_attention=True)
T, B = 9, 4


def some(model: ModelConfig = MODEL, seed: int = 1) -> tuple[Weights, np.ndarray, np.ndarray]:
    """Weights, inputs whose sources are of different lengths (one has none, one no translation), and targets."""
    weights = {name: 3 * array for name, array in initial_weights(model, seed=5).items()}
    inputs_TB, targets_TB = np.random.default_rng(seed).integers(END + 1, 20, (2, T, B), dtype=np.int32)
    inputs_TB[[0, 2, 4], [0, 1, 2]] = END
    inputs_TB[6, 1] = END  # a second one is a word like others
    targets_TB[:2], targets_TB[5, 3] = IGNORED, IGNORED
    return weights, inputs_TB, targets_TB


@pytest.mark.parametrize("penalties", [{}, {"activation_penalty": 2.0, "temporal_penalty": 3.0}], ids=["plain", "penalized"])
def test_gradients(make_adapter: MakeAdapter, penalties: dict[str, float]) -> None:
    """Of several micro-batches that go backward together, under dropout."""
    adapter = make_adapter(replace(MODEL, **penalties))
    weights, *_ = some()
    adapter.load_weights(weights)
    expected: dict[str, Any] = dict.fromkeys(weights, 0.0)
    losses = 0.0
    for number in range(3):
        _, inputs_TB, targets_TB = some(seed=number)
        masks = dropout_masks(0.3, widths=dropout_widths(MODEL), sequence_length=T, stream_ids=range(B), micro_batch=number, seed=2)
        adapter.accumulate(
            inputs_TB, targets_TB, adapter.zero_state(B), weight=0.5, last=number == 2, defer=2 - number, dropout_masks=masks
        )
        keep = keep_probability(0.3)
        judged = reference_lstm.run(weights, inputs_TB, targets_TB, None, masks, keep, source_end=END, **penalties)
        losses += judged.loss_sum
        for name, gradient in judged.gradients.items():
            expected[name] = expected[name] + 0.5 * gradient
    for name, gradient in adapter.gradients().items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert adapter.step(learning_rate=0.1, clip=None, unscale=1.0).loss_sum == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("pieces", [[T], [1] * T, [2, 3, 4], [5, 1, 3]])
def test_a_text_in_pieces_is_the_text(make_adapter: MakeAdapter, pieces: list[int]) -> None:
    adapter = make_adapter(MODEL)
    weights, inputs_TB, targets_TB = some()
    adapter.load_weights(weights)
    judged = reference_lstm.run(weights, inputs_TB, targets_TB, source_end=END)
    state, found, losses, at = adapter.zero_state(B), [], 0.0, 0
    other = adapter.zero_state(B)
    for piece in pieces:
        rows = slice(at, at + piece)
        logits, state = adapter.logits(inputs_TB[rows], state)
        evaluated = adapter.evaluate(inputs_TB[rows], targets_TB[rows], other)
        other, losses, at = evaluated.state, losses + float(evaluated.losses_TB.sum()), at + piece
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found), judged.logits_TBV, rtol=1e-4, atol=1e-5)
    assert losses == pytest.approx(judged.loss_sum, rel=1e-5)
    assert adapter.state_to_numpy(state).shape == (2, B, 12), "what was read of a source is not carried to another"


def test_sequences_are_chosen(make_adapter: MakeAdapter) -> None:
    """In any order, also several times, with what each attends to."""
    adapter = make_adapter(MODEL)
    weights, inputs_TB, targets_TB = some()
    adapter.load_weights(weights)
    chosen = [2, 0, 2, 1, 3]
    judged = reference_lstm.run(weights, inputs_TB[:, chosen], targets_TB[:, chosen], source_end=END)
    _, state = adapter.next_logits(inputs_TB[:6], adapter.zero_state(B))
    logits_BV, _ = adapter.next_logits(inputs_TB[6:][:, chosen], adapter.select_state(state, chosen))
    np.testing.assert_allclose(logits_BV, judged.logits_TBV[-1], rtol=1e-4, atol=1e-5)


def test_padding_says_nothing(make_adapter: MakeAdapter) -> None:
    """What stands behind the end of an example has no say in its gradient."""
    found = []
    for pad in (END, 7):
        adapter = make_adapter(replace(MODEL, dropout=0.0), OptimizerConfig("sgd"))
        weights, inputs_TB, targets_TB = some()
        inputs_TB[7:], targets_TB[7:] = pad, IGNORED
        adapter.load_weights(weights)
        adapter.accumulate(inputs_TB, targets_TB, adapter.zero_state(B), weight=0.5, last=True)
        found.append(adapter.gradients())
    for name, gradient in found[0].items():
        np.testing.assert_allclose(gradient, found[1][name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source_attention": True}, "--source-attention are of models that translate"),
        ({"source_end": 1, "classes": ("a", "b")}, "a model translates, or it tells --classes apart"),
    ],
)
def test_what_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelConfig(10, **settings)


def test_a_micro_batch_without_targets(make_adapter: MakeAdapter) -> None:
    """As of a rank for which no example is left."""
    adapter = make_adapter(MODEL, OptimizerConfig("sgd"))
    weights, inputs_TB, targets_TB = some()
    adapter.load_weights(weights)
    masks = dropout_masks(0.3, widths=dropout_widths(MODEL), sequence_length=T, stream_ids=range(B), micro_batch=0, seed=2)
    nothing = np.full_like(targets_TB, IGNORED)
    assert not adapter.evaluate(inputs_TB, nothing, adapter.zero_state(B)).losses_TB.any()
    adapter.accumulate(inputs_TB, nothing, adapter.zero_state(B), weight=1.0, last=True, dropout_masks=masks)
    assert adapter.step(learning_rate=0.1, clip=None, unscale=1.0).loss_sum == 0.0
    for name, array in adapter.weights().items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
