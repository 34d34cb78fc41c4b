"""A run can be left and entered: legs, snapshots, cursors; and twice in one process."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from conftest import INSTALLED
from numpy.typing import NDArray

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import Adapter, StepResult
from hvd_lm.checkpoint import CheckpointWriter
from hvd_lm.config import RunConfig, with_vocabulary_size
from hvd_lm.data.sources import MicroBatch, Position, Window
from hvd_lm.data.streams import Streams
from hvd_lm.data.texts import Texts, read_texts
from hvd_lm.errors import DataError, TrainingError
from hvd_lm.training.cursor import Cursor
from hvd_lm.training.dataset import TextDataset
from hvd_lm.training.leg import Leg
from hvd_lm.training.loss_scale import SMALLEST, LossScale
from hvd_lm.training.metrics import Row
from hvd_lm.training.snapshot import Snapshot, enter

TEXT = Path(__file__).parent / "assets" / "format1" / "text.txt"


def config_of(framework: str, out: Path) -> RunConfig:
    return RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=out,
        epochs=2,
        threads=1,
        model=hvd_lm.ModelConfig(vocabulary_size=40, embedding_size=6, hidden_size=(8, 10), dropout=0.2),
        data=hvd_lm.DataConfig(data=(TEXT,), batch_size=4, sequence_length=16),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=5),
    )


class Noted:
    """Metrics that a test can look at."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def write(self, row: Row) -> None:
        self.rows.append(row)

    def say(self, message: str) -> None:
        raise AssertionError(message)


def leg_of(config: RunConfig, texts: Texts, snapshot: Snapshot | None = None) -> tuple[Leg, Adapter, Noted]:
    """In an adapter of its own."""
    adapter = hvd_lm.adapter(config.framework, config.communication, threads=1)
    adapter.build(config.model, config.optimizer)
    leg, noted = Leg(config, TextDataset(texts, config.seed), adapter, *enter(adapter, snapshot, config.seed)), Noted()
    leg.outlets.metrics = noted
    return leg, adapter, noted


def losses(noted: Noted) -> list[float]:
    return [row["loss"] for row in noted.rows]


@pytest.mark.parametrize("random_lengths", [False, True])
def test_a_run_that_is_left_and_entered_again_makes_the_same_steps(framework: str, random_lengths: bool, tmp_path: Path) -> None:
    """At every step of two epochs, in memory: weights, moments, states, position, noise."""
    config = config_of(framework, tmp_path)
    config = replace(config, data=replace(config.data, random_lengths=random_lengths))
    texts = read_texts(config.data, 40)
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    whole, adapter, noted = leg_of(config, texts)
    whole.run()
    assert whole.total_steps == len(noted.rows) > 10
    in_legs: list[float] = []
    snapshot = None
    for stop in (3, whole.total_steps // 2, whole.total_steps // 2 + 1, whole.total_steps):
        leg, last, some = leg_of(config, texts, snapshot)
        leg.run(until=stop)
        snapshot = leg.snapshot()
        in_legs += losses(some)
    assert in_legs == losses(noted)
    for name, weight in adapter.weights().items():
        np.testing.assert_array_equal(last.weights()[name], weight, err_msg=name)


def test_a_snapshot_is_not_changed_by_the_steps_after_it(framework: str, tmp_path: Path) -> None:
    config = config_of(framework, tmp_path)
    texts = read_texts(config.data, 40)
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    leg, adapter, _ = leg_of(config, texts)
    leg.run(until=2)
    snapshot, weights, state = leg.snapshot(), adapter.weights(), adapter.optimizer_state()
    leg.run(until=4)
    for name, weight in weights.items():
        np.testing.assert_array_equal(snapshot.weights[name], weight, err_msg=name)
        assert np.abs(adapter.weights()[name] - weight).max() > 0
    for name, moment in state.moments.items():
        np.testing.assert_array_equal(snapshot.optimizer_state.moments[name], moment, err_msg=name)


def test_train_runs_twice_in_a_process(framework: str, tmp_path: Path) -> None:
    """With the same losses, and with another model after the first."""
    runs = []
    for out, epochs in ((tmp_path / "one", 1), (tmp_path / "two", 1), (tmp_path / "three", 1)):
        config = replace(config_of(framework, out), epochs=epochs)
        if out.name == "two":
            config = replace(config, model=hvd_lm.ModelConfig(vocabulary_size=40, embedding_size=5, hidden_size=7, layers=1))
        hvd_lm.train(config)
        runs.append([json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()])
    assert runs[0] == runs[2]
    assert runs[0] != runs[1]


def test_a_loss_scale_that_runs_out_keeps_the_weights_before(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that was not applied is none: not in the counter, not in the checkpoint."""
    config = config_of(framework, tmp_path)
    texts = read_texts(config.data, 40)
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    leg, adapter, noted = leg_of(config, texts)
    leg.run(until=2)
    leg._loss_scale = LossScale(SMALLEST, growth_steps=100, skipped_steps=7)
    monkeypatch.setattr(adapter, "step", lambda **_: StepResult(loss_sum=3.0, gradient_norm=math.inf, applied=False))
    words = r"at any loss scale \(8 steps skipped\).*; the weights of step 2 are in "
    with CheckpointWriter(tmp_path, keep=1) as leg.outlets.writer, pytest.raises(TrainingError, match=words):
        leg.run()
    kept = checkpoints.load(tmp_path)
    assert (leg.step, len(noted.rows), kept.step) == (2, 2, 2)
    assert kept.progress.loss_scale == LossScale(SMALLEST, growth_steps=100, skipped_steps=7)
    for name, weight in adapter.weights().items():
        np.testing.assert_array_equal(kept.weights[name], weight, err_msg=name)


def test_a_text_that_is_gone_keeps_the_weights(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(framework, tmp_path)
    texts = read_texts(config.data, 40)
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    leg, _, noted = leg_of(config, texts)
    leg.run(until=3)

    def gone(*_: object) -> MicroBatch:
        raise FileNotFoundError(2, "No such file", "shard")

    monkeypatch.setattr(Streams, "micro_batch", gone)
    with CheckpointWriter(tmp_path, keep=1) as leg.outlets.writer, pytest.raises(DataError, match="cannot read the training text"):
        leg.run()
    assert (leg.step, len(noted.rows), checkpoints.load(tmp_path).step) == (3, 3, 3)


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    """A run that went on from such a checkpoint would end at once, and so would every one after it."""
    config = config_of(INSTALLED[0], tmp_path)
    texts = read_texts(config.data, 40)
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    leg, adapter, _ = leg_of(config, texts)
    leg.run(until=2)
    weights = adapter.weights()
    adapter.load_weights({**weights, "output_kernel": weights["output_kernel"] * np.float32("nan")})
    words = "the loss is nan at step 3, .*; the weights of step 2 are no numbers any more, and are not written"
    with CheckpointWriter(tmp_path, keep=1) as leg.outlets.writer, pytest.raises(TrainingError, match=words):
        leg.run()
    assert not checkpoints.exists(tmp_path)


def test_a_step_whose_validation_fails_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are kept: it does not come again."""
    config = replace(config_of(INSTALLED[0], tmp_path), validation_every=3)
    texts = read_texts(config.data, 40)
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    leg, _, noted = leg_of(config, texts)

    def fail() -> NoReturn:
        raise DataError("cannot read it again")

    monkeypatch.setattr(leg.validations, "run", fail)
    with pytest.raises(DataError, match="again"):
        leg.run()
    assert [row["step"] for row in noted.rows] == [1, 2, 3]


class Examples:
    """A source whose sequences stand alone, as pairs of sentences do."""

    carries_state = False
    stream_ids = range(4)
    micro_batches = 3

    def micro_batch(self, index: int) -> MicroBatch:
        tokens = np.random.default_rng(index).integers(0, 30, (9, 4), dtype=np.int32)
        return MicroBatch(tokens[:-1], tokens[1:])

    def length(self, index: int) -> int:
        raise NotImplementedError

    def windows(self, backward_passes_per_step: int, start: int = 0) -> Iterator[Window]:
        assert (backward_passes_per_step, start) == (5, 0)
        yield Window(0, 3, 3 * 32)

    def position(self, micro_batches: int) -> Position:
        return Position(((0, 96),), 4, 8, micro_batches)


def test_sequences_that_stand_alone_begin_with_a_zero_state(framework: str, tmp_path: Path) -> None:
    config = config_of(framework, tmp_path)
    config = replace(config, model=replace(config.model, dropout=0.0))
    texts = read_texts(config.data, 40)
    config = with_vocabulary_size(config, texts.tokenizer.vocabulary_size)
    leg, adapter, noted = leg_of(config, texts)

    def no_noise(*, stream_ids: range, micro_batch: int, sequence_length: int) -> list[NDArray[np.bool_]]:
        noted_ids.append((stream_ids, micro_batch, sequence_length))
        return []

    noted_ids: list[tuple[range, int, int]] = []

    leg._cursor = Cursor(lambda _: Examples(), no_noise)
    expected = 0.0
    for index in range(3):
        batch = Examples().micro_batch(index)
        expected += float(adapter.evaluate(batch.inputs_TB, batch.targets_TB, adapter.zero_state(4)).losses_TB.sum())
    leg.run(until=1)
    assert losses(noted)[0] == pytest.approx(expected / 96, rel=1e-5)
    assert noted_ids == [(range(4), index, 8) for index in range(3)]
