"""Adagrad: the update of the paper, of all rows and of those that a window touched, on one rank and on several."""

from __future__ import annotations

import json
from pathlib import Path

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED, MakeAdapter
from grids import CASES, assert_same_figures

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import Adapter
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.errors import CheckpointError, ConfigError
from hvd_lm.model.candidates import candidates
from hvd_lm.model.weights import initial_weights

V, T, B = 60, 3, 4
MODELS = {
    "full softmax": ModelConfig(V, embedding_size=12, hidden_size=16),
    "sampled softmax": ModelConfig(V, embedding_size=12, hidden_size=16, softmax="sampled", sampled_words=9),
    "tied": ModelConfig(V, embedding_size=16, hidden_size=16, tie_embedding=True),
}
ADAGRAD = OptimizerConfig(optimizer="adagrad", initial_accumulator=0.01)


def ready(make_adapter: MakeAdapter, model: ModelConfig) -> Adapter:
    adapter = make_adapter(model, ADAGRAD)
    adapter.load_weights(initial_weights(model, seed=2))
    return adapter


def window(adapter: Adapter, number: int) -> None:
    """Of two micro-batches, which share no backward."""
    for place in range(2):
        micro_batch = 2 * number + place
        inputs, targets = np.random.default_rng(micro_batch).integers(0, V, (2, T, B), dtype=np.int32)
        adapter.accumulate(
            inputs, targets, adapter.zero_state(B), weight=1 / (2 * targets.size), last=place == 1,
            candidates=candidates(adapter.model, micro_batch=micro_batch, seed=1),
        )  # fmt: skip


@pytest.mark.parametrize(("kind", "clip"), [("full softmax", None), ("sampled softmax", 0.2), ("tied", 0.2)])
def test_updates_are_those_of_the_paper(make_adapter: MakeAdapter, kind: str, clip: float | None) -> None:
    adapter = ready(make_adapter, MODELS[kind])
    before = {name: value.astype(np.float64) for name, value in adapter.weights().items()}
    expected = dict(before)
    sums = {name: np.full(value.shape, 0.01) for name, value in before.items()}
    for number in range(4):
        window(adapter, number)
        gradients = {name: value.astype(np.float64) for name, value in adapter.gradients().items()}
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        for name, gradient in gradients.items():
            clipped = gradient * (min(1.0, clip / norm) if clip else 1.0)
            sums[name] = sums[name] + clipped**2
            expected[name] = expected[name] - 0.1 * clipped / np.sqrt(sums[name])
        outcome = adapter.step(learning_rate=0.1, clip=clip, unscale=1.0)
        assert outcome.applied
        assert outcome.gradient_norm == pytest.approx(norm, rel=1e-5)
    moments = adapter.optimizer_state().moments
    for name, value in adapter.weights().items():
        moved = expected[name] - before[name]
        np.testing.assert_allclose(value - before[name], moved, atol=2e-4 * np.abs(moved).max() + 1e-7, err_msg=name)
        np.testing.assert_allclose(moments[f"accumulator/{name}"], sums[name], rtol=1e-5, err_msg=name)


def test_touched_rows_alone_give_what_all_rows_give(make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, whether a step is applied or dropped."""
    found = []
    for by_rows in (True, False):
        monkeypatch.setattr(OptimizerConfig, "keeps_absent_rows", by_rows)
        adapter = ready(make_adapter, MODELS["sampled softmax"])
        for number, unscale in enumerate((1.0, 1.0, np.inf, 1.0)):
            window(adapter, number)
            applied = adapter.step(learning_rate=0.1, clip=None, unscale=unscale).applied
            assert applied == bool(np.isfinite(unscale))
        found.append({**adapter.weights(), **adapter.optimizer_state().moments})
    for name, of_rows in found[0].items():
        np.testing.assert_array_equal(of_rows, found[1][name], err_msg=name)


def test_absent_rows_stay_as_they_are(make_adapter: MakeAdapter) -> None:
    adapter = ready(make_adapter, MODELS["full softmax"])
    before = {**adapter.weights(), **adapter.optimizer_state().moments}
    shared = {**adapter.weights(copy=False), **adapter.optimizer_state(copy=False).moments}
    window(adapter, 0)
    adapter.step(learning_rate=0.1, clip=None, unscale=1.0)
    after = {**adapter.weights(), **adapter.optimizer_state().moments}
    for name in ("embedding", "accumulator/embedding"):
        kept = (after[name] == before[name]).all(1)
        assert 0 < kept.sum() < V
        if not shared[name].flags.writeable:
            np.testing.assert_array_equal(shared[name], before[name])


def test_a_state_of_another_optimizer_is_refused(make_adapter: MakeAdapter) -> None:
    state = make_adapter(MODELS["tied"], OptimizerConfig()).optimizer_state()
    with pytest.raises(CheckpointError, match="does not fit adagrad"):
        make_adapter(MODELS["tied"], ADAGRAD).load_optimizer_state(state)


def test_the_root_is_never_of_zero() -> None:
    with pytest.raises(ConfigError, match="--initial-accumulator must be above 0 and finite, not 0"):
        OptimizerConfig(optimizer="adagrad", initial_accumulator=0.0)


# --- on several ranks ------------------------------------------------------------------------------------

_SETTINGS = {"optimizer": "adagrad", "initial_accumulator": 1e-4, "steps": 8}


@pytest.mark.ranks
def test_figures_are_those_of_one_process(framework: str) -> None:
    """Whatever is divided; of looked-up parameters by their rows."""

    def on_grid(ranks: int, case: dict[str, object], **more: object) -> list[dict[str, list[list[float]]]]:
        return pools.body("grid", ranks, framework, json.dumps(case | _SETTINGS | more))

    by_optimizer, by_layers = {"split": "optimizer", "data_parallel": 2}, {"split": "layers", "model_parallel": 2}
    for case, grids in (
        (CASES["sampled"], [{"data_parallel": 2}, {"model_parallel": 2}]),
        (CASES["tied, with dropout"], [by_optimizer, by_layers]),
    ):
        alone = np.array(on_grid(1, case)[0]["figures"])
        for grid in grids:
            ranks = int(grid.get("data_parallel", 1)) * int(grid.get("model_parallel", 1))
            assert_same_figures(on_grid(ranks, case, **grid), alone)


@pytest.mark.ranks
def test_a_run_begins_and_goes_on(tmp_path: Path) -> None:
    """On one rank and on two, whose moments do not travel at the start; begun in one framework, ended in another."""

    def train(out: str, ranks: int, steps: int, framework: str = INSTALLED[0]) -> list[float]:
        pools.hvd_lm(
            ranks, "train", "--framework", framework, "--out", tmp_path / out, *launcher.TINY, "--hidden-size", "16", "--steps",
            str(steps), "--batch-size", str(4 // ranks), "--resume", "auto", "--optimizer", "adagrad", "--initial-accumulator",
            "0.001", "--learning-rate", "0.05", "--validation-share", "0",
        )  # fmt: skip
        return launcher.losses(tmp_path / out)

    alone = train("alone", 1, 6)
    for framework in INSTALLED:
        train(framework, 2, 3, framework)
        np.testing.assert_allclose(train(framework, 1, 6, INSTALLED[-1]), alone, rtol=1e-5)
    moments = checkpoints.load(tmp_path / "alone").optimizer_state.moments
    assert all(name.startswith("accumulator/") and (moment >= np.float32(0.001)).all() for name, moment in moments.items())
