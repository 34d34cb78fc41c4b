"""Training against sampled words: candidates, gradients by the reference, the same figures on any grid, and what it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import launcher
import numpy as np
import pools
import pytest
import reference_lstm
from conftest import INSTALLED, MakeAdapter
from grids import CASES, alone, assert_halves_travelled, assert_same_figures, on_grid

from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model.candidates import candidates
from hvd_lm.model.weights import initial_weights

PLAIN = ModelConfig(embedding_size=12, hidden_size=16, **CASES["sampled"])
TIED = ModelConfig(hidden_size=16, **CASES["sampled, tied"])


def test_candidates_are_a_function_of_seed_and_micro_batch() -> None:
    model = ModelConfig(vocabulary_size=1000, softmax="sampled", sampled_words=50)
    drawn = [candidates(model, micro_batch=number, seed=3) for number in (0, 0, 1)]
    first, again, other = (of.words_S for of in drawn if of)
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)
    assert len(set(first)) == len(first) == 50
    assert candidates(ModelConfig(vocabulary_size=1000), micro_batch=0, seed=3) is None


def test_words_are_drawn_as_often_as_expected() -> None:
    model = ModelConfig(vocabulary_size=100, softmax="sampled", sampled_words=20)
    words, seen, expected = np.arange(100, dtype=np.int32), np.zeros(100), np.zeros(100)
    for number in range(2000):
        of = candidates(model, micro_batch=number, seed=1)
        assert of is not None
        seen[of.words_S] += 1
        expected += np.exp(of.log_expected(words))
    np.testing.assert_allclose(seen, expected, atol=6 * math.sqrt(500))
    assert seen[0] > 3 * seen[99] > 0


def test_fewer_words_than_the_vocabulary() -> None:
    with pytest.raises(ConfigError, match="--sampled-words 51 is not below the vocabulary of 51 words"):
        ModelConfig(vocabulary_size=51, softmax="sampled", sampled_words=51)


@pytest.mark.parametrize("model", [pytest.param(PLAIN, id="plain"), pytest.param(TIED, id="tied")])
def test_gradients_are_those_of_the_reference(make_adapter: MakeAdapter, model: ModelConfig) -> None:
    """Of two micro-batches that share a backward, each with candidates of its own."""
    adapter = make_adapter(model, OptimizerConfig())
    adapter.load_weights(initial_weights(model, seed=2))
    weights, state, before = adapter.weights(), adapter.zero_state(5), None
    expected = {name: np.zeros(value.shape) for name, value in weights.items()}
    loss = 0.0
    for number in range(2):
        inputs, targets = np.random.default_rng(number).integers(0, 51, (2, 7, 5), dtype=np.int32)
        targets[number + 1 :, number] = -1
        drawn = candidates(model, micro_batch=number, seed=1)
        assert drawn is not None
        assert np.isin(targets, drawn.words_S).any(), "a candidate is hit by accident"
        state = adapter.accumulate(inputs, targets, state, weight=0.25, last=number == 1, defer=1 - number, candidates=drawn)
        outcome = reference_lstm.run(weights, inputs, targets, before, sampled=(drawn.words_S, drawn.draws))
        before = outcome.state
        loss += outcome.loss_sum
        for name, gradient in outcome.gradients.items():
            expected[name] += 0.25 * gradient
    for name, gradient in adapter.gradients().items():
        scale = float(np.abs(expected[name]).max())
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)
    assert adapter.step(learning_rate=1e-3, clip=None, unscale=1.0).loss_sum == pytest.approx(loss, rel=1e-6)


STEPS = 20
GRIDS: list[tuple[int, int, dict[str, Any]]] = [
    (1, 3, {}),
    (2, 2, {}),
    (2, 1, {"split": "optimizer"}),
    (1, 2, {"split": "layers"}),
]


@pytest.mark.ranks
def test_figures_are_those_of_one_process(framework: str) -> None:
    for data, model, split in GRIDS if framework == INSTALLED[0] else GRIDS[::3]:
        on_ranks = on_grid(framework, data * model, "sampled", data_parallel=data, model_parallel=model, steps=STEPS, **split)
        assert_same_figures(on_ranks, alone(framework, "sampled")[:STEPS])


@pytest.mark.ranks
@pytest.mark.parametrize("framework", INSTALLED[:1])
def test_tied_figures_and_halves(framework: str) -> None:
    expected = alone(framework, "sampled, tied")[:STEPS]
    assert_same_figures(on_grid(framework, 2, "sampled, tied", model_parallel=2, steps=STEPS), expected)
    halves = on_grid(framework, 2, "sampled, tied", model_parallel=2, steps=STEPS, compression="fp16")
    assert_halves_travelled(halves, expected)


@pytest.mark.ranks
@pytest.mark.skipif(len(INSTALLED) < 2, reason="parity needs both frameworks")
def test_frameworks_agree() -> None:
    first, second = (alone(framework, "sampled") for framework in INSTALLED)
    np.testing.assert_allclose(second, first, rtol=1e-4)


RECIPE = [
    *("--vocabulary-size", "1000", "--embedding-size", "48", "--hidden-size", "96", "--layers", "1", "--batch-size", "8"),
    *("--sequence-length", "16", "--backward-passes-per-step", "2", "--learning-rate", "0.005", "--threads", "1"),
]


@pytest.mark.ranks
def test_a_run_goes_on_bit_for_bit(framework: str, tmp_path: Path) -> None:
    flags = ["--framework", framework, *RECIPE, "--softmax", "sampled", "--sampled-words", "100", "--deterministic"]
    pools.hvd_lm(1, "train", "--out", tmp_path / "whole", *flags, "--steps", "10")
    for steps in ("5", "10"):
        pools.hvd_lm(1, "train", "--out", tmp_path / "parts", *flags, "--steps", steps, "--resume", "auto")
    assert launcher.losses(tmp_path / "parts") == launcher.losses(tmp_path / "whole")


@pytest.mark.ranks
def test_it_learns_nearly_what_full_training_does(tmp_path: Path) -> None:
    """And so does an adaptive softmax."""
    validated, clusters = {}, ("--adaptive-cutoffs", "100", "400")
    for softmax, flags in {"full": (), "sampled": ("--sampled-words", "200"), "adaptive": clusters}.items():
        out = tmp_path / softmax
        more = ["--softmax", softmax, *flags, "--steps", "300"]
        pools.hvd_lm(1, "train", "--framework", INSTALLED[0], "--out", out, *RECIPE, *more)
        last = launcher.metrics(out)[-1]
        validated[softmax] = last["validation_loss"]
        assert last.get("sampled_words") == (200 if softmax == "sampled" else None)
    assert validated["full"] < 5.5, "it learns at all"
    assert validated["sampled"] < validated["full"] + 0.15
    assert validated["adaptive"] < validated["full"] + 0.15
