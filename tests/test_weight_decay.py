"""Weight decay: as part of the gradient and, with AdamW, beside it; on one rank and on several."""

from __future__ import annotations

import json
import math
from pathlib import Path

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED, MakeAdapter
from grids import CASES, assert_same_figures

from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model.weights import initial_weights

V, T, B, RATE, DECAY, CLIP = 60, 3, 4, 0.02, 0.3, 0.5
MODEL = ModelConfig(V, embedding_size=12, hidden_size=16, layers=1, initial_range=0.5)


def moved(config: OptimizerConfig, weights: dict, gradients: list[dict]) -> dict:
    """The judge: Algorithm 2 of Loshchilov & Hutter 2019 (their eta is the rate, as in PyTorch), momentum SGD, both with L2 too."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    first, second = ({name: np.zeros(value.shape) for name, value in weights.items()} for _ in range(2))
    for t, step in enumerate(gradients, start=1):
        for name, gradient in step.items():
            weight = weights[name]
            if config.optimizer == "adamw":
                weight = weight - RATE * DECAY * weight
            else:
                gradient = gradient + DECAY * weight
            if config.optimizer == "sgd":
                first[name] = config.momentum * first[name] + gradient
                weights[name] = weight - RATE * first[name]
                continue
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * gradient
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * gradient**2
            root = np.sqrt(second[name] / (1 - config.beta2**t)) + config.epsilon
            weights[name] = weight - RATE * first[name] / (1 - config.beta1**t) / root
    return weights


@pytest.mark.parametrize(("optimizer", "momentum"), [("adam", 0.0), ("adamw", 0.0), ("sgd", 0.0), ("sgd", 0.9)])
def test_updates_are_those_of_the_reference(make_adapter: MakeAdapter, optimizer: str, momentum: float) -> None:
    """Clipping and the norm are of the gradient without it; words that do not occur decay too."""
    config = OptimizerConfig(optimizer=optimizer, momentum=momentum, weight_decay=DECAY, epsilon=1e-3)  # type: ignore[arg-type]
    adapter = make_adapter(MODEL, config)
    adapter.load_weights(initial_weights(MODEL, seed=2))
    before, steps, seen = adapter.weights(), [], set()
    for number in range(4):
        inputs, targets = np.random.default_rng(number).integers(0, V // 2, (2, T, B), dtype=np.int32)
        seen |= set(inputs.flatten().tolist())
        adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=3 / targets.size, last=True)
        gradients = {name: value.astype(np.float64) for name, value in adapter.gradients().items()}
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        assert norm > CLIP
        steps.append({name: gradient * CLIP / norm for name, gradient in gradients.items()})
        assert adapter.step(learning_rate=RATE, clip=CLIP, unscale=1.0).gradient_norm == pytest.approx(norm, rel=1e-5)
    after, expected = adapter.weights(), moved(config, before, steps)
    for name, value in after.items():
        way = expected[name] - before[name]
        np.testing.assert_allclose(value - before[name], way, atol=2e-4 * np.abs(way).max() + 1e-7, err_msg=name)
    absent = sorted(set(range(V)) - seen)
    assert (np.abs(after["embedding"][absent]).sum(1) < 0.99 * np.abs(before["embedding"][absent]).sum(1)).all()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_step_that_is_dropped_leaves_the_weights(make_adapter: MakeAdapter, optimizer: str) -> None:
    adapter = make_adapter(MODEL, OptimizerConfig(optimizer=optimizer, weight_decay=DECAY))  # type: ignore[arg-type]
    adapter.load_weights(initial_weights(MODEL, seed=2))
    inputs, targets = np.random.default_rng(0).integers(0, V, (2, T, B), dtype=np.int32)
    adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=math.inf, last=True)
    before = adapter.weights()
    assert not adapter.step(learning_rate=RATE, clip=CLIP, unscale=1.0).applied
    for name, value in adapter.weights().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_adagrad_leaves_absent_rows_and_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--weight-decay does not go with --optimizer adagrad, .* take adam, adamw, sgd or asgd"):
        OptimizerConfig(optimizer="adagrad", weight_decay=0.1)


@pytest.mark.parametrize("decay", [-0.1, math.inf, math.nan])
def test_what_is_no_decay_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="--weight-decay must be at least 0 and finite"):
        OptimizerConfig(weight_decay=decay)


# --- on several ranks ------------------------------------------------------------------------------------


@pytest.mark.ranks
@pytest.mark.parametrize(("optimizer", "case"), [("adamw", "tied, with dropout"), ("sgd", "sampled")])
def test_figures_are_those_of_one_process(framework: str, optimizer: str, case: str) -> None:
    """Whatever is divided."""
    more: dict[str, object] = {"optimizer": optimizer, "weight_decay": 0.1, "steps": 9}

    def on_grid(ranks: int, **settings: object) -> list[dict[str, list[list[float]]]]:
        return pools.body("grid", ranks, framework, json.dumps(CASES[case] | more | settings))

    alone = np.array(on_grid(1)[0]["figures"])
    assert np.abs(np.array(on_grid(1, weight_decay=0.0)[0]["figures"]) / alone - 1).max() > 1e-4
    grids: list[dict[str, object]] = [
        {"data_parallel": 2}, {"model_parallel": 2}, {"split": "layers", "model_parallel": 2}, {"split": "optimizer"},
    ]  # fmt: skip
    for grid in grids:
        assert_same_figures(on_grid(2, **grid), alone)


@pytest.mark.ranks
@pytest.mark.parametrize("more", [[], ["--late-gradients"], ["--compression", "powersgd", "--powersgd-start-steps", "1"]])
def test_a_run_goes_on_bit_for_bit_and_frameworks_agree(more: list[str], tmp_path: Path) -> None:
    curves = []
    for framework in INSTALLED:

        def train(out: str, steps: int, framework: str = framework) -> list[float]:
            pools.hvd_lm(
                2, "train", "--framework", framework, "--out", tmp_path / framework / out, *launcher.TINY, "--hidden-size", "16",
                "--steps", str(steps), "--batch-size", "2", "--resume", "auto", "--optimizer", "adamw", "--weight-decay", "0.2",
                "--learning-rate", "0.01", "--checkpoint-every", "4", "--validation-share", "0", "--deterministic", *more,
            )  # fmt: skip
            return launcher.losses(tmp_path / framework / out)

        whole = train("whole", 8)
        train("parts", 4)
        assert train("parts", 8) == whole
        curves.append(whole)
    np.testing.assert_allclose(curves[0], curves[-1], rtol=1e-4)
