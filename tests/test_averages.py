"""Averaged SGD: when averages begin, what they are, and that they are what is judged, kept and gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED, MakeAdapter

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.config import CommunicationConfig, ModelConfig, OptimizerConfig, RunConfig, TopologyConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model.weights import initial_weights
from hvd_lm.training.averages import Averages

V, T, B = 40, 3, 4
MODEL = ModelConfig(V, embedding_size=6, hidden_size=8, layers=1)
ASGD = OptimizerConfig(optimizer="asgd", average_patience=2)


def step(adapter: hvd_lm.Adapter, number: int) -> None:
    inputs, targets = np.random.default_rng(number).integers(0, V, (2, T, B), dtype=np.int32)
    adapter.accumulate(inputs, targets, adapter.zero_state(B), weight=1 / targets.size, last=True)
    assert adapter.step(learning_rate=0.5, clip=None, unscale=1.0).applied


def test_averages_are_means_of_the_weights_since(make_adapter: MakeAdapter) -> None:
    """And change places with them only while they are judged."""
    adapter, plain = make_adapter(MODEL, ASGD), make_adapter(MODEL, OptimizerConfig(optimizer="sgd"))
    for one in (adapter, plain):
        one.load_weights(initial_weights(MODEL, seed=2))
    averages = Averages(adapter)
    for number, loss in enumerate((2.0, 3.0, 2.5, 2.4)):
        assert averages.averaging.since is None
        step(adapter, number)
        step(plain, number)
        averages.note(loss)
    assert averages.averaging.since == 4, "2.4 is above 2.0, the lowest before the last two"
    with averages.judged():
        np.testing.assert_array_equal(adapter.weights()["embedding"], plain.weights()["embedding"])
    seen = []
    for number in range(4, 7):
        step(adapter, number)
        step(plain, number)
        seen.append(plain.weights())
    with averages.judged():
        for name, averaged in adapter.weights().items():
            np.testing.assert_allclose(averaged, np.mean([of[name] for of in seen], 0, np.float64), atol=1e-6, err_msg=name)
            assert np.abs(averaged - seen[-1][name]).max() > 1e-5
    for name, weight in adapter.weights().items():
        np.testing.assert_array_equal(weight, seen[-1][name], err_msg=name)


def test_averages_begin_when_the_paper_says(make_adapter: MakeAdapter) -> None:
    """Not while a validation is below what was the lowest before the last ones, nor too early."""
    averages = Averages(make_adapter(MODEL, ASGD))
    for loss in (3.0, 4.0, 3.5, 2.9, 2.95, 2.85, float("nan"), 2.87):
        averages.note(loss)
        assert averages.averaging.since is None
    averages.note(2.91)
    assert averages.averaging.since == 0


@pytest.mark.parametrize(
    "settings", [{"topology": TopologyConfig(split="optimizer")}, {"communication": CommunicationConfig(reduce_every=2)}]
)
def test_ranks_that_have_no_averages_in_common_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match="--optimizer asgd averages whole weights"):
        RunConfig(optimizer=ASGD, **settings)


def test_no_patience_is_refused() -> None:
    with pytest.raises(ConfigError, match="--average-patience must be at least 1, not 0"):
        OptimizerConfig(optimizer="asgd", average_patience=0)


# --- runs ------------------------------------------------------------------------------------------------

FLAGS = [
    *launcher.TINY, "--hidden-size", "12", "--optimizer", "asgd", "--average-patience", "1", "--learning-rate", "24", "--clip", "5",
    "--validation-share", "0.02", "--validation-every", "1",
    "--checkpoint-every", "1", "--keep-checkpoints", "99", "--threads", "1", "--deterministic",
]  # fmt: skip


@pytest.mark.ranks
@pytest.mark.parametrize("split", [[], ["--split", "layers", "--model-parallel", "2"], ["--late-gradients"]])
def test_runs_go_on_bit_for_bit_and_keep_the_averages(split: list[str], tmp_path: Path) -> None:
    """From before the averages and from among them; the frameworks agree, and one rank reads what two have written."""
    curves = []
    for framework in INSTALLED:

        def train(out: Path, steps: int, *more: str, framework: str = framework) -> list[tuple[float, float]]:
            batch = "4" if "layers" in split else "2"
            pools.hvd_lm(
                2,
                "train",
                "--framework",
                framework,
                "--out",
                out,
                *FLAGS,
                "--batch-size",
                batch,
                "--steps",
                str(steps),
                *split,
                *more,
            )
            return [(row["loss"], row["validation_loss"]) for row in launcher.metrics(out)]

        whole, parts = tmp_path / framework / "whole", tmp_path / framework / "parts"
        figures = train(whole, 12)
        since = checkpoints.load(whole).progress.averaging.since
        assert since is not None
        assert 1 < since < 9
        folder = whole / checkpoints.FOLDER
        for at in (since + 2,) if split else (since - 1, since + 2):
            out = parts.with_name(f"from-{at}")
            assert train(out, 12, "--resume", str(folder / f"step-{at:08d}")) == figures[at:]
        last = [checkpoints.load(folder / f"step-{at:08d}") for at in range(since + 1, 13)]
        for name, weight in last[-1].weights.items():
            plain = [checkpoint.optimizer_state.moments[f"average/{name}"] for checkpoint in last]
            np.testing.assert_allclose(weight, np.mean(plain, 0, np.float64), atol=1e-5, err_msg=name)
        curves.append(figures)
    np.testing.assert_allclose(curves[0], curves[-1], rtol=1e-3)


def config_of(framework: str, folder: Path, out: str, *, steps: int) -> RunConfig:
    """Of a run that soon averages, on a text with a test split, which is made in `folder`."""
    text = folder / "text.txt"
    text.write_text("".join(f"the {name} sat on the {place}\n" for name in ("cat", "dog", "owl") * 40 for place in ("mat", "log")))
    hvd_lm.prepare(hvd_lm.PrepareConfig(text=(text,), out=folder / "prepared", validation_share=0.2, test_share=0.1))
    return RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=folder / out,
        steps=steps,
        threads=1,
        validation_every=1,
        model=ModelConfig(embedding_size=6, hidden_size=8),
        data=hvd_lm.DataConfig(data=(folder / "prepared",), batch_size=2, sequence_length=8),
        optimizer=OptimizerConfig(optimizer="asgd", average_patience=1, learning_rate=12.0, clip=None),
    )


def test_the_test_split_is_read_by_the_averages(framework: str, tmp_path: Path) -> None:
    """Those of the best checkpoint: the adapter itself holds plain weights."""
    config = config_of(framework, tmp_path, "run", steps=14)
    result = hvd_lm.train(config)
    best = checkpoints.load(config.out / checkpoints.FOLDER / "best")
    since = best.progress.averaging.since
    assert since is not None
    assert best.step > since
    assert result.test is not None
    expected = hvd_lm.evaluate(config.out / checkpoints.FOLDER / "best", tmp_path / "prepared", framework=framework, threads=1)  # type: ignore[arg-type]
    assert result.test.loss == pytest.approx(expected.loss, rel=1e-6)


def test_without_a_best_checkpoint_the_last_averages_read_the_test_split(framework: str, tmp_path: Path) -> None:
    """Of a run that goes on in another folder and gets no better."""
    config = config_of(framework, tmp_path, "begun", steps=12)
    hvd_lm.train(config)
    worse = replace(config.optimizer, learning_rate=200.0)
    result = hvd_lm.train(replace(config, out=tmp_path / "on", steps=14, resume=str(config.out), optimizer=worse))
    assert not (tmp_path / "on" / checkpoints.FOLDER / "best").exists()
    assert checkpoints.load(tmp_path / "on").progress.averaging.since is not None
    assert result.test is not None
    expected = hvd_lm.evaluate(tmp_path / "on", tmp_path / "prepared", framework=framework, threads=1)  # type: ignore[arg-type]
    assert result.test.loss == pytest.approx(expected.loss, rel=1e-6)
