"""What validations decide: the rate of --decay plateau, the end by --patience, and which weights read the test split."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import launcher
import pools
import pytest

import hvd_lm
from hvd_lm import checkpoint as checkpoints

RATE = 8.0
FLAGS = [*launcher.SMALL, "--batch-size", "4", "--backward-passes-per-step", "2", "--threads", "1", "--deterministic"]
PLATEAU = [*FLAGS, "--optimizer", "sgd", "--learning-rate", str(RATE), "--decay", "plateau", "--decay-factor", "0.5"]


def train(framework: str, ranks: int, out: Path, *flags: str) -> Any:
    return pools.hvd_lm(ranks, "train", "--framework", framework, "--out", out, *flags)


def non_improvements(losses: list[float]) -> list[bool]:
    """Of each validation, whether it is no better than all before it."""
    return [bool(index) and loss >= min(losses[:index]) for index, loss in enumerate(losses)]


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_rate_falls_when_validations_do_not(framework: str, ranks: int, tmp_path: Path) -> None:
    """And it goes on where it was, in a run that goes on: at a step without a validation, too."""
    flags = [*PLATEAU, "--validation-every", "2", "--steps", "24"]
    train(framework, ranks, tmp_path / "whole", *flags, "--checkpoint-every", "13", "--keep-checkpoints", "99")
    rows = launcher.metrics(tmp_path / "whole")
    worse = non_improvements([row["validation_loss"] for row in rows[1::2]])
    assert any(worse[:6])
    assert 2 <= sum(worse) < len(worse) - 2
    expected = [RATE * 0.5 ** sum(worse[: step // 2]) for step in range(24)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)
    parts = tmp_path / "parts"
    train(framework, ranks, parts, *flags, "--resume", str(tmp_path / "whole" / checkpoints.FOLDER / "step-00000013"))
    assert told(launcher.metrics(parts)) == told(rows[13:])


def told(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [[row.get(name) for name in ("step", "loss", "learning_rate", "validation_loss")] for row in rows]


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_patience_ends_the_run(framework: str, ranks: int, tmp_path: Path) -> None:
    """After the first three in a row that are no better; with a checkpoint, and with nothing left to go on with."""
    flags = [*FLAGS, "--optimizer", "sgd", "--learning-rate", "16", "--validation-every", "1", "--steps", "14"]
    train(framework, ranks, tmp_path / "whole", *flags)
    worse = non_improvements([row["validation_loss"] for row in launcher.metrics(tmp_path / "whole")])
    end = next(step for step in range(3, 15) if all(worse[step - 3 : step]))
    out = tmp_path / "run"
    ended = train(framework, ranks, out, *flags, "--patience", "3")
    assert ended.code == 0
    assert f"the run ends after step {end}: 3 validations in a row were not below the best" in ended.output
    assert launcher.losses(out) == launcher.losses(tmp_path / "whole")[:end]
    assert checkpoints.newest_step(out) == end
    assert checkpoints.load(out).progress.validations_since_best == 3
    again = train(framework, ranks, out, *flags, "--patience", "3", "--resume", "auto")
    assert "raise --patience to go on" in again.output
    train(framework, ranks, out, *flags, "--resume", "auto")
    assert launcher.losses(out) == launcher.losses(tmp_path / "whole")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    text = folder / "text.txt"
    text.write_text("".join(f"the {name} sat on the {place}\n" for name in ("cat", "dog", "owl") * 40 for place in ("mat", "log")))
    config = hvd_lm.PrepareConfig(text=(text,), out=folder / "prepared", validation_share=0.2, test_share=0.1)
    hvd_lm.prepare(config)
    return folder / "prepared"


def test_the_best_weights_read_the_test_split(framework: str, prepared: Path, tmp_path: Path) -> None:
    """Not the last, which a rate that is too high has spoilt."""
    config = hvd_lm.RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=tmp_path / "run",
        steps=12,
        threads=1,
        validation_every=1,
        model=hvd_lm.ModelConfig(embedding_size=6, hidden_size=8),
        data=hvd_lm.DataConfig(data=(prepared,), batch_size=2, sequence_length=8),
        optimizer=hvd_lm.OptimizerConfig(optimizer="sgd", learning_rate=30.0, clip=None),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=2),
    )
    result = hvd_lm.train(config)
    losses = [row["validation_loss"] for row in launcher.metrics(config.out)]
    best = losses.index(min(losses)) + 1
    assert best < 12
    expected = hvd_lm.evaluate(config.out / checkpoints.FOLDER / "best", prepared, framework=framework, threads=1)  # type: ignore[arg-type]
    assert result.test is not None
    assert result.test.loss == pytest.approx(expected.loss, rel=1e-6)
    last = hvd_lm.evaluate(config.out, prepared, framework=framework, threads=1)  # type: ignore[arg-type]
    assert last.loss > expected.loss + 0.01
    assert result.test.tokens == expected.tokens


@pytest.mark.ranks
@pytest.mark.parametrize("split", [[], ["--split", "vocabulary", "--model-parallel", "2"], ["--split", "optimizer"]])
def test_ranks_read_the_test_split_together(framework: str, split: list[str], prepared: Path, tmp_path: Path) -> None:
    flags = ["--data", str(prepared), "--hidden-size", "8", "--embedding-size", "6", "--optimizer", "sgd", "--learning-rate", "30"]
    flags += ["--clip", "None", "--validation-every", "1", "--steps", "12", "--sequence-length", "8", "--threads", "1", *split]
    ended = train(framework, 2, tmp_path / "run", *flags, "--batch-size", "2", "--backward-passes-per-step", "2")
    expected = hvd_lm.evaluate(tmp_path / "run" / checkpoints.FOLDER / "best", prepared, framework=framework, threads=1)  # type: ignore[arg-type]
    step = checkpoints.load(tmp_path / "run" / checkpoints.FOLDER / "best").step
    said = f"test loss {expected.loss:.4f}  perplexity {expected.perplexity:.2f}, of the weights after step {step}"
    assert ended.output.count(said) == 1, ended.output


def test_without_validations_the_last_weights_read_it(prepared: Path, tmp_path: Path) -> None:
    model = hvd_lm.ModelConfig(embedding_size=6, hidden_size=8)
    data = hvd_lm.DataConfig(data=(prepared,), validation_share=0.0, batch_size=2)
    config = hvd_lm.RunConfig(out=tmp_path / "run", steps=3, threads=1, model=model, data=data)
    result = hvd_lm.train(config)
    assert result.validation is None
    assert result.test is not None
    assert result.test.loss == pytest.approx(hvd_lm.evaluate(config.out, prepared, threads=1).loss, rel=1e-6)
    assert math.isfinite(result.test.loss)
    assert hvd_lm.train(replace(config, out=tmp_path / "other", test=False)).test is None
