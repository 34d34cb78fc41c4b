"""The contract of an adapter: one suite, run against every framework, judged by the NumPy reference."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import reference_lstm
from conftest import MakeAdapter
from numpy.typing import NDArray

from hvd_lm.adapters.base import Adapter, OptimizerState
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.errors import CheckpointError
from hvd_lm.model.noise import Mask, dropout_masks, dropout_widths, keep_probability, step_noise, weight_masks
from hvd_lm.model.stages import stages
from hvd_lm.model.weights import initial_weights

T, B, V = 7, 5, 40
PLAIN = ModelConfig(vocabulary_size=V, embedding_size=12, hidden_size=16, layers=2)
TIED = ModelConfig(vocabulary_size=V, embedding_size=16, hidden_size=16, layers=2, tie_embedding=True)
DEEP = ModelConfig(vocabulary_size=V, embedding_size=12, hidden_size=16, layers=3)
DROPPING = ModelConfig(vocabulary_size=V, embedding_size=12, hidden_size=16, layers=2, dropout=0.4)
TAPERED = ModelConfig(vocabulary_size=V, embedding_size=12, hidden_size=(20, 16, 12), dropout=0.3, tie_embedding=True)
PROJECTED = ModelConfig(
    vocabulary_size=V, embedding_size=8, hidden_size=(16, 20), projection_size=8, dropout=0.2, tie_embedding=True
)
MULTIPLICATIVE = ModelConfig(vocabulary_size=V, embedding_size=12, hidden_size=(16, 20), cell="mlstm", dropout=0.2)
ADAPTIVE = ModelConfig(
    vocabulary_size=V, embedding_size=12, hidden_size=(20, 16), dropout=0.2, softmax="adaptive", adaptive_cutoffs=(10, 24)
)
NOISY = ModelConfig(
    vocabulary_size=V, embedding_size=12, hidden_size=(16, 20, 12), tie_embedding=True, dropout=0.3, locked_dropout=True,
    input_dropout=0.5, output_dropout=0.2, embedding_dropout=0.25, weight_dropout=0.5,
    activation_penalty=2.0, temporal_penalty=1.5,
)  # fmt: skip
MODELS = [
    pytest.param(model, id=name)
    for name, model in {
        "plain": PLAIN,
        "tied": TIED,
        "deep": DEEP,
        "dropout": DROPPING,
        "tapered": TAPERED,
        "mlstm": MULTIPLICATIVE,
        "normalized": replace(MULTIPLICATIVE, weight_normalization=True),
        "adaptive": ADAPTIVE,
        "projected": PROJECTED,
        "noisy": NOISY,
        "weights drop": replace(PLAIN, weight_dropout=0.3),
        "weights of projected drop": replace(PROJECTED, weight_dropout=0.3),
        "weights of mlstm drop": replace(MULTIPLICATIVE, weight_dropout=0.3),
        "penalized": replace(PLAIN, activation_penalty=3.0, temporal_penalty=2.0),
        "projected penalized": replace(PROJECTED, temporal_penalty=2.0),
        "adaptive penalized": replace(ADAPTIVE, activation_penalty=3.0),
        "words drop": replace(PLAIN, embedding_dropout=0.4, output_dropout=0.3),
    }.items()
]

Tokens = NDArray[np.int32]


def random_tokens(seed: int, steps: int = T) -> tuple[Tokens, Tokens]:
    inputs, targets = np.random.default_rng(seed).integers(0, V, (2, steps, B), dtype=np.int32)
    return inputs, targets


def masks_of(model: ModelConfig, micro_batch: int, inputs_TB: Tokens) -> list[Mask]:
    """Of all that drops, as training makes them."""
    of_activations = dropout_masks(
        model.dropout_rates,
        widths=dropout_widths(model),
        sequence_length=T,
        stream_ids=range(B),
        micro_batch=micro_batch,
        seed=5,
        locked=model.locked_dropout,
    )
    return step_noise(model, step=1, seed=5).masks(inputs_TB, of_activations)


def scales_of(model: ModelConfig, masks: list[Mask]) -> list[NDArray[np.float64]]:
    """What the reference multiplies with at each place, from below."""
    left = iter(masks)
    of_words = next(left) / keep_probability(model.embedding_dropout) if model.embedding_dropout else np.ones(())
    scales = [next(left) / keep_probability(rate) if rate else np.ones(()) for rate in model.dropout_rates]
    return [of_words * scales[0], *scales[1:]]


def factors_of(model: ModelConfig, step: int = 1) -> dict[str, NDArray[np.float64]]:
    """What the reference multiplies weights with, and their gradients."""
    keep = keep_probability(model.weight_dropout)
    factors = {parameter.name: np.ones(()) for stage in stages(model) for parameter in stage.parameters.values()}
    return factors | {name: mask / keep for name, mask in weight_masks(model, factors, step=step, seed=5).items()}


def ready(make_adapter: MakeAdapter, model: ModelConfig, optimizer: OptimizerConfig | None = None) -> Adapter:
    adapter = make_adapter(model, optimizer)
    adapter.load_weights(initial_weights(model, seed=2))
    return adapter


def assert_close_to_scale(actual: NDArray[np.float32], expected: NDArray[np.float64], name: str) -> None:
    """Within 1e-5 of the largest entry, and within 1e-5 relative where an entry is not tiny beside it."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()), err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_logits_are_those_of_the_reference(make_adapter: MakeAdapter, model: ModelConfig) -> None:
    adapter = ready(make_adapter, model)
    inputs, targets = random_tokens(0)
    logits, _ = adapter.logits(inputs, adapter.zero_state(B))
    assert logits.shape == (T, B, V)
    assert logits.dtype == np.float32
    # Without gradient there is no dropout.
    expected = reference_lstm.run(adapter.weights(), inputs, targets)
    np.testing.assert_allclose(logits, expected.logits_TBV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("deferred", [(), (0,), (0, 1)])
@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_of_the_reference(make_adapter: MakeAdapter, model: ModelConfig, deferred: tuple[int, ...]) -> None:
    """Accumulated over three micro-batches with the state carried and cut, ignored targets, and dropout."""
    adapter = ready(make_adapter, model)
    factors = factors_of(model)
    adapter.drop_weights(weight_masks(model, factors, step=1, seed=5))
    weights = {name: value * factors[name] for name, value in adapter.weights().items()}
    state, reference_state = adapter.zero_state(B), None
    expected = {name: np.zeros(value.shape) for name, value in weights.items()}
    loss_sum = 0.0
    for index in range(3):
        inputs, targets = random_tokens(index)
        targets[index + 1 :, index] = -1
        masks = masks_of(model, index, inputs)
        state = adapter.accumulate(
            inputs, targets, state, weight=0.25, last=index == 2, defer=index in deferred, dropout_masks=masks
        )
        outcome = reference_lstm.run(
            weights, inputs, targets, reference_state, scales_of(model, masks),
            activation_penalty=model.activation_penalty, temporal_penalty=model.temporal_penalty,
        )  # fmt: skip
        reference_state = outcome.state
        loss_sum += outcome.loss_sum
        for name, gradient in outcome.gradients.items():
            expected[name] += 0.25 * gradient * factors[name]
    gradients = adapter.gradients()
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        assert_close_to_scale(gradient, expected[name], name)
    result = adapter.step(learning_rate=1e-3, clip=None, unscale=2.0)
    assert result.loss_sum == pytest.approx(loss_sum, rel=1e-6)
    norm = math.sqrt(sum(float((g**2).sum()) for g in expected.values()))
    assert result.gradient_norm == pytest.approx(2.0 * norm, rel=1e-5)


@pytest.mark.parametrize("by_hand", [False, True])
def test_weights_drop_in_training_alone(make_adapter: MakeAdapter, by_hand: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reads the model between the windows, in which other weights drop each time."""
    model = replace(PLAIN, weight_dropout=0.5, dropout=0.2, activation_penalty=2.0, temporal_penalty=1.0)
    if by_hand:
        monkeypatch.setattr(pytest.importorskip("hvd_lm.adapters.pytorch.stages"), "ONEDNN_UNITS", 1)
    adapter = ready(make_adapter, model)
    inputs, targets = random_tokens(0)
    for step in range(3):
        stored, factors = adapter.weights(), factors_of(model, step)
        adapter.drop_weights(weight_masks(model, factors, step=step, seed=5))
        masks = masks_of(model, step, inputs)
        for last in (False, True):
            adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=0.5, last=last, dropout_masks=masks)
        dropped = {name: value * factors[name] for name, value in stored.items()}
        scales, penalties = scales_of(model, masks), {"activation_penalty": 2.0, "temporal_penalty": 1.0}
        outcome = reference_lstm.run(dropped, inputs, targets, None, scales, **penalties)
        for name, gradient in adapter.gradients().items():
            assert_close_to_scale(gradient, outcome.gradients[name] * factors[name], name)
        for changed in (False, True):
            if changed:
                adapter.step(learning_rate=0.1, clip=None, unscale=1.0)
            logits, _ = adapter.logits(inputs, adapter.zero_state(B))
            expected = reference_lstm.run(adapter.weights(), inputs, targets)
            np.testing.assert_allclose(logits, expected.logits_TBV, rtol=1e-5, atol=1e-5)
            loss = adapter.evaluate(inputs, targets, adapter.zero_state(B)).losses_TB.sum()
            assert loss == pytest.approx(expected.loss_sum, rel=1e-6)


def test_padded_positions_change_nothing(make_adapter: MakeAdapter) -> None:
    adapter = ready(make_adapter, PLAIN)
    inputs, targets = random_tokens(0)
    targets[4:] = -1
    padded = adapter.evaluate(inputs, targets, adapter.zero_state(B)).losses_TB
    cut = adapter.evaluate(inputs[:4], targets[:4], adapter.zero_state(B)).losses_TB
    np.testing.assert_allclose(padded[:4], cut, rtol=1e-6)
    assert not padded[4:].any()


def test_the_state_carries_a_sequence_over_micro_batches(make_adapter: MakeAdapter) -> None:
    adapter = ready(make_adapter, PLAIN)
    inputs, _ = random_tokens(0, steps=2 * T)
    whole, _ = adapter.logits(inputs, adapter.zero_state(B))
    first, state = adapter.logits(inputs[:T], adapter.zero_state(B))
    second, _ = adapter.logits(inputs[T:], state)
    np.testing.assert_allclose(np.concatenate((first, second)), whole, atol=1e-6)
    fresh, _ = adapter.logits(inputs[T:], adapter.zero_state(B))
    assert np.abs(fresh - whole[T:]).max() > 1e-4


def adam_in_numpy(config: OptimizerConfig, weights: dict, gradients: list[dict], rate: float) -> dict:
    """Algorithm 1 of Kingma & Ba 2015."""
    first = {name: np.zeros(value.shape) for name, value in weights.items()}
    second = {name: np.zeros(value.shape) for name, value in weights.items()}
    for t, step in enumerate(gradients, start=1):
        for name, gradient in step.items():
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * gradient
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * gradient**2
            corrected = first[name] / (1 - config.beta1**t), second[name] / (1 - config.beta2**t)
            weights[name] = weights[name] - rate * corrected[0] / (np.sqrt(corrected[1]) + config.epsilon)
    return weights


def sgd_in_numpy(config: OptimizerConfig, weights: dict, gradients: list[dict], rate: float) -> dict:
    velocity = {name: np.zeros(value.shape) for name, value in weights.items()}
    for step in gradients:
        for name, gradient in step.items():
            velocity[name] = config.momentum * velocity[name] + gradient
            weights[name] = weights[name] - rate * velocity[name]
    return weights


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(OptimizerConfig(epsilon=1e-3), id="adam"),
        pytest.param(OptimizerConfig(optimizer="sgd"), id="sgd"),
        pytest.param(OptimizerConfig(optimizer="sgd", momentum=0.9), id="momentum"),
    ],
)
def test_updates_are_those_of_the_papers(make_adapter: MakeAdapter, optimizer: OptimizerConfig, clip: float | None) -> None:
    adapter = ready(make_adapter, PLAIN, optimizer)
    before = {name: value.astype(np.float64) for name, value in adapter.weights().items()}
    steps = []
    clipped = 0
    for index in range(4):
        inputs, targets = random_tokens(index)
        adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=3 / targets.size, last=True)
        gradients = {name: value.astype(np.float64) for name, value in adapter.gradients().items()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        factor = 1.0 if clip is None else min(1.0, clip / norm)
        clipped += factor < 1
        steps.append({name: factor * g for name, g in gradients.items()})
        result = adapter.step(learning_rate=0.01, clip=clip, unscale=1.0)
        assert result.applied
        assert result.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert (clipped > 0) == (clip is not None)
    judge = adam_in_numpy if optimizer.optimizer == "adam" else sgd_in_numpy
    expected = judge(optimizer, dict(before), steps, 0.01)
    for name, value in adapter.weights().items():
        moved = expected[name] - before[name]
        np.testing.assert_allclose(value - before[name], moved, atol=2e-4 * np.abs(moved).max() + 1e-7, err_msg=name)


def test_the_norm_of_millions_of_values_is_exact(make_adapter: MakeAdapter) -> None:
    """Single precision sums in one go lose three digits at this size."""
    model = ModelConfig(vocabulary_size=8000, embedding_size=8, hidden_size=512, layers=1)
    adapter = ready(make_adapter, model)
    inputs, targets = np.random.default_rng(0).integers(0, 8000, (2, T, B), dtype=np.int32)
    adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=1 / targets.size, last=True)
    expected = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in adapter.gradients().values()))
    assert adapter.step(learning_rate=0.01, clip=None, unscale=1.0).gradient_norm == pytest.approx(expected, rel=2e-5)


def test_unscale_undoes_the_loss_scale(make_adapter: MakeAdapter) -> None:
    results = []
    for scale in (1.0, 4096.0):
        adapter = ready(make_adapter, PLAIN)
        inputs, targets = random_tokens(0)
        adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=scale / targets.size, last=True)
        results.append((adapter.step(learning_rate=0.01, clip=0.1, unscale=1 / scale), adapter.weights()))
    (plain, plain_weights), (scaled, scaled_weights) = results
    assert scaled.gradient_norm == pytest.approx(plain.gradient_norm, rel=1e-6)
    assert scaled.loss_sum == pytest.approx(plain.loss_sum)
    for name, value in plain_weights.items():
        np.testing.assert_allclose(scaled_weights[name], value, atol=1e-6, err_msg=name)


def test_weights_that_are_not_copied_are_right_until_the_next_step(make_adapter: MakeAdapter) -> None:
    """And those that say they are read-only stay right for ever."""
    adapter = ready(make_adapter, PLAIN)
    inputs, targets = random_tokens(0)
    for _ in range(2):
        copies = {**adapter.weights(), **adapter.optimizer_state().moments}
        shared = {**adapter.weights(copy=False), **adapter.optimizer_state(copy=False).moments}
        adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=1 / targets.size, last=True)
        for name, value in copies.items():
            np.testing.assert_array_equal(shared[name], value, err_msg=name)
        adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0)
        for name, value in copies.items():
            if not shared[name].flags.writeable:
                np.testing.assert_array_equal(shared[name], value, err_msg=name)


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_dropped(make_adapter: MakeAdapter, poison: float) -> None:
    adapter = ready(make_adapter, PLAIN)
    inputs, targets = random_tokens(0)
    adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=1 / targets.size, last=True)
    assert adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0).applied
    weights, state = adapter.weights(), adapter.optimizer_state()
    adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=poison, last=True)
    result = adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0)
    assert not result.applied
    assert not math.isfinite(result.gradient_norm)
    assert math.isfinite(result.loss_sum)
    for name, value in adapter.weights().items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    after = adapter.optimizer_state()
    assert after.applied_steps == state.applied_steps == 1
    for name, value in after.moments.items():
        np.testing.assert_array_equal(value, state.moments[name], err_msg=name)
    # Nothing of the dropped window reaches the next one.
    adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=1 / targets.size, last=True)
    assert adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0).applied


def test_a_loss_that_is_not_finite_is_not_learnt_from(make_adapter: MakeAdapter) -> None:
    """Although its gradient is finite: that of a target which the model holds for impossible."""
    adapter = ready(make_adapter, PLAIN)
    inputs, targets = random_tokens(0)
    impossible = adapter.weights()
    impossible["output_bias"][targets[0, 0]] = -np.inf
    adapter.load_weights(impossible)
    adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=1 / targets.size, last=True)
    result = adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0)
    assert (result.loss_sum, result.applied) == (math.inf, False)
    assert math.isfinite(result.gradient_norm)
    for name, value in adapter.weights().items():
        np.testing.assert_array_equal(value, impossible[name], err_msg=name)
    assert adapter.optimizer_state().applied_steps == 0


def test_a_window_with_trouble_is_not_learnt_from(make_adapter: MakeAdapter) -> None:
    adapter = ready(make_adapter, PLAIN)
    inputs, targets = random_tokens(0)
    weights = adapter.weights()
    adapter.job.trouble.note(ValueError("something"))
    adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=1 / targets.size, last=True)
    result = adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0)
    assert (result.applied, result.ranks_in_trouble) == (False, 1)
    for name, value in adapter.weights().items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)


def test_a_step_needs_a_whole_window(make_adapter: MakeAdapter) -> None:
    """Without its last micro-batch nothing was reduced."""
    adapter = ready(make_adapter, PLAIN)
    inputs, targets = random_tokens(0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=re.escape("step() needs an accumulate(..., last=True) before it")):
            adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0)
        adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=0.5, last=False)
    adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=0.5, last=True)
    assert adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0).applied
    adapter.begin_dynamic_evaluation(*({name: np.float32(0.1) for name in adapter.weights()} for _ in range(2)))
    with pytest.raises(RuntimeError, match=re.escape("dynamic_step() needs")):
        adapter.dynamic_step()


@pytest.mark.parametrize("model", [DROPPING, ADAPTIVE, NOISY], ids=["dropout", "adaptive", "noisy"])
def test_evaluate_is_the_loss_of_the_reference(make_adapter: MakeAdapter, model: ModelConfig) -> None:
    adapter = ready(make_adapter, model)
    inputs, targets = random_tokens(0)
    outcome = adapter.evaluate(inputs, targets, adapter.zero_state(B))
    expected = reference_lstm.run(adapter.weights(), inputs, targets)
    log_sums_TB = np.log(np.exp(expected.logits_TBV).sum(axis=2))
    losses_TB = log_sums_TB - np.take_along_axis(expected.logits_TBV, targets[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(outcome.losses_TB, losses_TB, rtol=1e-5)
    assert outcome.losses_TB.sum() == pytest.approx(expected.loss_sum, rel=1e-6)
    state = adapter.state_to_numpy(outcome.state)
    np.testing.assert_allclose(outcome.outputs_TBH[-1], state[0, :, -model.widths[-1] :], atol=1e-6)
    np.testing.assert_allclose(state, np.concatenate(expected.state, axis=2), atol=1e-5)


def test_weights_and_moments_survive_a_round_trip(make_adapter: MakeAdapter) -> None:
    """A second adapter that takes over the state goes on exactly like the first."""
    first, second = ready(make_adapter, PLAIN), make_adapter(PLAIN)
    for index in range(3):
        inputs, targets = random_tokens(index)
        first.accumulate(inputs, targets, first.zero_state(B), weight=1 / targets.size, last=True)
        first.step(learning_rate=0.01, clip=1.0, unscale=1.0)
    second.load_weights(first.weights())
    second.load_optimizer_state(first.optimizer_state())
    inputs, targets = random_tokens(9)
    for adapter in (first, second):
        adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=1 / targets.size, last=True)
        adapter.step(learning_rate=0.01, clip=1.0, unscale=1.0)
    assert second.optimizer_state().applied_steps == 4
    for name, value in first.weights().items():
        np.testing.assert_array_equal(second.weights()[name], value, err_msg=name)


def test_weights_of_another_model_are_refused(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(PLAIN)
    with pytest.raises(CheckpointError, match="embedding has shape"):
        adapter.load_weights(initial_weights(ModelConfig(vocabulary_size=V, embedding_size=9, hidden_size=16), seed=1))
    with pytest.raises(CheckpointError, match="another optimizer"):
        adapter.load_optimizer_state(OptimizerState(1, {"momentum/embedding": np.zeros((V, 12), np.float32)}))


def test_the_environment_is_left_as_it_was(make_adapter: MakeAdapter) -> None:
    """Horovod's settings of this process must not reach a job that it launches."""
    make_adapter(PLAIN)  # importing a framework may set variables of its own
    before = dict(os.environ)
    make_adapter(PLAIN)
    assert dict(os.environ) == before
    assert "HOROVOD_CONTROLLER" not in before


def test_alone_nothing_travels(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(PLAIN)
    assert (adapter.job.topology.rank, adapter.job.topology.size, adapter.job.groups["data"].communicates) == (0, 1, False)
    np.testing.assert_array_equal(adapter.job.sum(np.array([1.5, 2.0])), [1.5, 2.0])
    assert adapter.job.broadcast({"a": 1}) == {"a": 1}
    adapter.broadcast_state()
    assert "Horovod" in adapter.job.summary()


@pytest.mark.parametrize("model", [PLAIN, TAPERED, MULTIPLICATIVE, PROJECTED], ids=["plain", "tapered", "mlstm", "projected"])
def test_the_state_survives_a_round_trip(make_adapter: MakeAdapter, model: ModelConfig) -> None:
    adapter = ready(make_adapter, model)
    inputs, _ = random_tokens(9)
    _, state = adapter.logits(inputs, adapter.zero_state(B))
    stored = adapter.state_to_numpy(state)
    assert (stored.shape, stored.dtype) == ((2, B, sum(model.units)), np.float32)
    restored = adapter.state_from_numpy(stored)
    np.testing.assert_array_equal(adapter.logits(inputs, restored)[0], adapter.logits(inputs, state)[0])


@pytest.mark.parametrize("model", [PLAIN, TIED, ADAPTIVE], ids=["plain", "tied", "adaptive"])
def test_the_next_logits_are_the_last_of_all(make_adapter: MakeAdapter, model: ModelConfig) -> None:
    adapter = ready(make_adapter, model)
    inputs, _ = random_tokens(9)
    every, state = adapter.logits(inputs, adapter.zero_state(B))
    last, last_state = adapter.next_logits(inputs, adapter.zero_state(B))
    assert last.shape == (B, V)
    np.testing.assert_allclose(last, every[-1], atol=1e-6)
    np.testing.assert_array_equal(adapter.state_to_numpy(last_state), adapter.state_to_numpy(state))


@pytest.mark.parametrize("model", [PLAIN, ADAPTIVE], ids=["plain", "adaptive"])
def test_more_tokens_than_a_chunk_of_logits_are_judged_alike(make_adapter: MakeAdapter, model: ModelConfig) -> None:
    adapter = ready(make_adapter, model)
    inputs, targets = random_tokens(0, steps=121)
    assert inputs.size > 600
    targets[60:70] = -1
    together = adapter.evaluate(inputs, targets, adapter.zero_state(B))
    state, parts = adapter.zero_state(B), []
    for start in range(0, 121, 11):
        part = adapter.evaluate(inputs[start : start + 11], targets[start : start + 11], state)
        state = part.state
        parts.append(part.losses_TB)
    np.testing.assert_allclose(together.losses_TB, np.concatenate(parts), rtol=1e-5)
    assert not together.losses_TB[60:70].any()


def test_a_model_without_an_update_is_read_only(framework: str) -> None:
    from hvd_lm import adapter

    reader, trainer = adapter(framework, threads=1), adapter(framework, threads=1)
    reader.build(PLAIN)
    trainer.build(PLAIN, OptimizerConfig())
    inputs, targets = random_tokens(0)
    outcomes = []
    for made in (reader, trainer):
        made.load_weights(initial_weights(PLAIN, seed=2))
        outcomes.append(made.evaluate(inputs, targets, made.zero_state(B)).losses_TB)
    np.testing.assert_array_equal(*outcomes)
    assert len(trainer.optimizer_state().moments) == 2 * len(trainer.weights())
    with pytest.raises(AssertionError, match="without an update"):
        reader.optimizer_state()
