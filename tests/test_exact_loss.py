"""The loss of a text is that of one pass from end to end, however it is cut into streams, whatever the cells remember."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import launcher
import numpy as np
import pools
import pytest
import reference_lstm
from conftest import INSTALLED, MakeAdapter
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_lm.adapters.base import Adapter
from hvd_lm.config import ModelConfig
from hvd_lm.data.corpus import embedded_corpus
from hvd_lm.data.streams import Streams
from hvd_lm.evaluation import exact_loss
from hvd_lm.evaluation.exact_loss import evaluation_streams
from hvd_lm.model.weights import Weights, initial_weights

V, H, FIRST = 30, 16, 1
MODEL = ModelConfig(vocabulary_size=V, embedding_size=12, hidden_size=H, layers=2)


def forgets(weights: Weights) -> None:
    """As trained models mostly do: larger weights, forget gates half open."""
    for name, array in weights.items():
        if name.endswith("kernel"):
            array *= 3


def never_forgets(weights: Weights) -> None:
    forgets(weights)
    for layer in range(2):
        weights[f"lstm.{layer}.bias"][H : 2 * H] = 12


def counts(weights: Weights) -> None:
    """The first cell of each layer counts tokens: input and forget gate open, candidate 1, and tanh hides how far it is."""
    forgets(weights)
    for layer in range(2):
        for gate in range(3):
            unit = gate * H
            weights[f"lstm.{layer}.input_kernel"][unit] = 0
            weights[f"lstm.{layer}.recurrent_kernel"][unit] = 0
            weights[f"lstm.{layer}.bias"][unit] = 30


def ready(make_adapter: MakeAdapter, change: Callable[[Weights], None]) -> Adapter:
    adapter = make_adapter(MODEL)
    weights = initial_weights(MODEL, seed=2)
    change(weights)
    adapter.load_weights(weights)
    return adapter


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, length, dtype=np.int32)


def judged(adapter: Adapter, tokens: np.ndarray) -> float:
    inputs = np.concatenate(([FIRST], tokens[:-1])).astype(np.int32)
    return reference_lstm.run(adapter.weights(), inputs[:, None], tokens[:, None]).loss_sum


def count_work(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the columns of every micro-batch that is evaluated."""
    work: list[int] = []
    evaluate = adapter.evaluate

    def counting(inputs_TB, targets_TB, state):  # type: ignore[no-untyped-def]
        work.append(inputs_TB.shape[1])
        return evaluate(inputs_TB, targets_TB, state)

    monkeypatch.setattr(adapter, "evaluate", counting)
    return work


@pytest.mark.parametrize("change", [forgets, never_forgets, counts])
@pytest.mark.parametrize(("batch", "steps"), [(1, 16), (4, 16), (7, 5), (12, 64)])
def test_the_loss_is_that_of_the_judge_in_one_pass(
    make_adapter: MakeAdapter, change: Callable[[Weights], None], batch: int, steps: int
) -> None:
    adapter = ready(make_adapter, change)
    tokens = text(1501)
    loss = exact_loss.exact_loss(adapter, evaluation_streams(adapter, tokens, FIRST, batch, steps))
    assert loss == pytest.approx(judged(adapter, tokens), rel=1e-6)


OTHERS = {
    "widths": replace(MODEL, hidden_size=(10, 16)),
    "mlstm": replace(MODEL, cell="mlstm"),
    "projected": replace(MODEL, projection_size=6),
}


@pytest.mark.parametrize("model", OTHERS.values(), ids=OTHERS)
def test_the_loss_of_other_models_is_that_of_the_judge(make_adapter: MakeAdapter, model: ModelConfig) -> None:
    adapter = make_adapter(model)
    weights = initial_weights(model, seed=2)
    forgets(weights)
    adapter.load_weights(weights)
    tokens = text(1501)
    loss = exact_loss.exact_loss(adapter, evaluation_streams(adapter, tokens, FIRST, 5, 16))
    assert loss == pytest.approx(judged(adapter, tokens), rel=1e-6)


@given(length=st.integers(1, 300), batch=st.integers(1, 9), steps=st.integers(1, 40))
@settings(max_examples=25)
def test_any_cut_gives_the_same_loss(length: int, batch: int, steps: int) -> None:
    adapter, tokens = shared_adapter(), text(length, seed=length)
    loss = exact_loss.exact_loss(adapter, evaluation_streams(adapter, tokens, FIRST, batch, steps))
    assert loss == pytest.approx(judged(adapter, tokens), rel=2e-6)


_made: list[Adapter] = []


def shared_adapter() -> Adapter:
    """One for all examples: a TensorFlow adapter compiles its functions anew each time it is built."""
    from hvd_lm import adapter

    if not _made:
        made = adapter(INSTALLED[-1], threads=1)
        weights = initial_weights(MODEL, seed=2)
        never_forgets(weights)
        _made.append(made)
        made.build(MODEL)
        made.load_weights(weights)
    return _made[0]


def test_what_is_forgotten_is_not_read_twice(make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = ready(make_adapter, forgets)
    work = count_work(adapter, monkeypatch)
    exact_loss.exact_loss(adapter, evaluation_streams(adapter, text(8 * 640), FIRST, 8, 16))
    assert sum(work) < 1.4 * 8 * 40


def test_a_counting_cell_costs_no_second_reading(make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = ready(make_adapter, counts)
    work = count_work(adapter, monkeypatch)
    streams = evaluation_streams(adapter, text(8 * 640), FIRST, 8, 16)
    exact_loss.exact_loss(adapter, streams)
    state = adapter.state_to_numpy(adapter.evaluate(*inputs_of(streams, 39), adapter.zero_state(8)).state)
    assert state[1, 0, 0] == pytest.approx(16), "the cell counts"
    assert sum(work) < 1.5 * 8 * 40


def inputs_of(streams: Streams, index: int) -> tuple[np.ndarray, np.ndarray]:
    batch = streams.micro_batch(index)
    return batch.inputs_TB, batch.targets_TB


def test_long_memory_is_read_again_and_again(make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = ready(make_adapter, never_forgets)
    work = count_work(adapter, monkeypatch)
    exact_loss.exact_loss(adapter, evaluation_streams(adapter, text(6 * 96), FIRST, 6, 16))
    assert sum(work) > 2 * 6 * 6


def test_states_beyond_those_that_are_remembered(make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in (forgets, counts, never_forgets):
        adapter = ready(make_adapter, change)
        monkeypatch.setattr(exact_loss, "_REMEMBERED", 2)
        tokens = text(1000)
        loss = exact_loss.exact_loss(adapter, evaluation_streams(adapter, tokens, FIRST, 3, 8))
        assert loss == pytest.approx(judged(adapter, tokens), rel=1e-6)


def test_a_diverged_model_has_no_loss_but_an_end(make_adapter: MakeAdapter) -> None:
    adapter = ready(make_adapter, forgets)
    weights = adapter.weights()
    weights["lstm.0.bias"][:] = np.nan
    adapter.load_weights(weights)
    assert math.isnan(exact_loss.exact_loss(adapter, evaluation_streams(adapter, text(500), FIRST, 4, 16)))


@given(length=st.integers(1, 500), batch=st.integers(1, 6), ranks=st.integers(1, 4), steps=st.integers(1, 40))
def test_evaluation_streams_are_the_text_in_order(length: int, batch: int, ranks: int, steps: int) -> None:
    """Every token once; no padding before the end of the text."""
    tokens = np.arange(length, dtype=np.int32)
    read: list[int] = []
    for rank in range(ranks):
        streams = Streams(
            tokens,
            first_input=-7,
            batch_size=batch,
            sequence_length=steps,
            data_rank=rank,
            data_size=ranks,
            whole_micro_batches=True,
        )
        targets_SB = np.concatenate([streams.micro_batch(i).targets_TB for i in range(streams.micro_batches)])
        inputs_SB = np.concatenate([streams.micro_batch(i).inputs_TB for i in range(streams.micro_batches)])
        for column in range(batch):
            kept = targets_SB[:, column] >= 0
            assert (inputs_SB[kept, column] == np.where(targets_SB[kept, column] == 0, -7, targets_SB[kept, column] - 1)).all()
            read += targets_SB[kept, column].tolist()
            if len(read) < length:
                assert kept.all()
    assert read == list(range(length))


# --- by the command line ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    flags = ["--backward-passes-per-step", "2", "--steps", "40", "--learning-rate", "0.01"]
    pools.hvd_lm(1, "train", "--framework", INSTALLED[0], "--out", out, *launcher.SMALL, *flags)
    return out


@pytest.mark.ranks
def test_one_figure_for_any_ranks_and_frameworks(trained: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(embedded_corpus()[-60_000:])
    cuts = [(1, 1, 64), (1, 8, 64), (2, 3, 50), (4, 2, 33)]
    losses = []
    for framework in INSTALLED:
        for ranks, batch, steps in cuts if framework == INSTALLED[0] else cuts[1:3]:
            ended = pools.hvd_lm(
                ranks, "evaluate", "--checkpoint", trained, "--data", text, "--framework", framework,
                "--batch-size", str(batch), "--sequence-length", str(steps),
            )  # fmt: skip
            figures = json.loads(ended.output[ended.output.index('{"loss"') :].splitlines()[0])
            losses.append(figures["loss"])
            assert figures["tokens"] > 7_500
    assert losses[0] < 6.5
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
