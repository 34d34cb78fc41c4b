"""A run that ends early, by kill -9 too, goes on: exactly, with other ranks, or in the other framework."""

from __future__ import annotations

from pathlib import Path

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED

from hvd_lm import checkpoint as checkpoints
from hvd_lm.data.corpus import embedded_corpus

RECIPE = [*launcher.SMALL, "--backward-passes-per-step", "2", "--learning-rate", "0.005", "--dropout", "0.2", "--threads", "1"]
FOUR = ["--batch-size", "4"]

pytestmark = pytest.mark.ranks


SPLIT_OF = dict(zip(INSTALLED, ("layers", "vocabulary"), strict=False))  # the others: test_split_checkpoints.py


@pytest.mark.parametrize(
    ("framework", "ranks", "split"),
    [(INSTALLED[0], 1, None), (INSTALLED[0], 2, None), *((name, 2, SPLIT_OF[name]) for name in INSTALLED)],
)
def test_a_killed_run_goes_on_bit_for_bit(framework: str, ranks: int, split: str | None, tmp_path: Path) -> None:
    flags = ["--framework", framework, *RECIPE, *FOUR, "--deterministic"]
    flags += ["--model-parallel", str(ranks), "--split", split] if split else []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pools.hvd_lm(ranks, "train", "--out", whole, *flags, "--steps", "60")
    pools.hvd_lm(ranks, "train", "--out", parts, *flags, "--steps", "30")
    with launcher.training(ranks, parts, *flags, "--resume", "auto", after_step=33) as run:
        run.ranks[-1].kill()
        job = run.ended()
    assert job.code != 0
    assert len([line for line in job.output.splitlines() if "hvd-lm: " in line]) <= 1, job.output
    assert checkpoints.load(parts).step == 30
    pools.hvd_lm(ranks, "train", "--out", parts, *flags, "--steps", "60", "--resume", "auto")
    rows = launcher.metrics(parts)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert launcher.losses(parts) == launcher.losses(whole)
    assert rows[-1]["tokens"] == launcher.metrics(whole)[-1]["tokens"]
    assert rows[-1]["perplexity"] == launcher.metrics(whole)[-1]["perplexity"]


@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both frameworks")
def test_a_run_goes_on_in_the_other_framework(tmp_path: Path) -> None:
    flags = [*RECIPE, *FOUR]
    for framework in INSTALLED:
        pools.hvd_lm(1, "train", "--framework", framework, "--out", tmp_path / framework, *flags, "--steps", "60")
    mixed = tmp_path / "mixed"
    pools.hvd_lm(1, "train", "--framework", INSTALLED[0], "--out", mixed, *flags, "--steps", "30")
    pools.hvd_lm(1, "train", "--framework", INSTALLED[1], "--out", mixed, *flags, "--steps", "60", "--resume", "auto")
    assert len(launcher.losses(mixed)) == 60
    for framework in INSTALLED:
        np.testing.assert_allclose(launcher.losses(mixed), launcher.losses(tmp_path / framework), rtol=1e-4)


def test_other_ranks_read_the_rest_of_the_epoch(tmp_path: Path) -> None:
    """2 -> 1 -> 4 ranks of the same batch size each: the epoch has every token once, and the next one begins whole."""
    out, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text(embedded_corpus()[-220_000:])
    flags = ["--framework", INSTALLED[0], *RECIPE, *FOUR, "--validation-share", "0", "--data", text]
    for ranks, steps in ((2, 30), (1, 60), (4, 90)):
        pools.hvd_lm(ranks, "train", "--out", out, *flags, "--steps", str(steps), "--resume", "auto")
    pools.hvd_lm(4, "train", "--out", out, *flags, "--epochs", "1", "--resume", "auto")
    rows = launcher.metrics(out)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    sizes = np.diff([0, *(row["tokens"] for row in rows)])
    assert list(sizes[[29, 59, 89]]) == [2 * 2 * 4 * 16, 2 * 4 * 16, 4 * 2 * 4 * 16]
    from hvd_lm.config import DataConfig
    from hvd_lm.data.texts import read_texts

    corpus = read_texts(DataConfig((text,), validation_share=0), vocabulary_size=1000)
    assert rows[-1]["tokens"] == len(corpus.training)
    assert {row["epoch"] for row in rows} == {1}
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5


def test_the_same_streams_go_on_over_other_ranks(framework: str, tmp_path: Path) -> None:
    """(R=2, B=4) -> (R=1, B=8): LSTM states and streams move, so the losses are those of a run that never stopped."""
    flags = ["--framework", framework, *RECIPE]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    pools.hvd_lm(1, "train", "--out", whole, *flags, "--batch-size", "8", "--steps", "20")
    pools.hvd_lm(2, "train", "--out", moved, *flags, "--batch-size", "4", "--steps", "10")
    pools.hvd_lm(1, "train", "--out", moved, *flags, "--batch-size", "8", "--steps", "20", "--resume", "auto")
    np.testing.assert_allclose(launcher.losses(moved), launcher.losses(whole), rtol=1e-5)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with two checkpoints."""
    out = tmp_path_factory.mktemp("ended") / "run"
    pools.hvd_lm(1, *train_into(out), "--steps", "4", "--checkpoint-every", "2")
    return out


def train_into(out: Path) -> list[str | Path]:
    return ["train", "--framework", INSTALLED[0], "--out", out, *RECIPE, *FOUR]


def resume(out: Path, *flags: str, source: str | Path = "auto") -> launcher.Ended:
    return pools.hvd_lm(1, *train_into(out), "--resume", source, *flags, timeout=60)


def cannot_resume(out: Path, *flags: str, source: str | Path = "auto", ranks: int = 1) -> launcher.Ended:
    done = launcher.hvd_lm(ranks, *train_into(out), "--resume", source, *flags, timeout=60)
    assert done.code != 0
    return done


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hidden-size", "48"], "--hidden-size 32, this run 48"),
        (["--projection-size", "16"], "--projection-size None, this run 16"),
        (["--vocabulary-size", "900"], "--vocabulary-size 1000, this run 900"),
        (["--optimizer", "sgd"], "--optimizer adam, this run sgd"),
        (["--validation-share", "0.2"], "another text"),
    ],
)
def test_what_does_not_fit_is_one_line(ended: Path, flags: list[str], words: str) -> None:
    before = (ended / "metrics.jsonl").read_text()
    done = cannot_resume(ended, *flags, "--steps", "6")
    assert done.code == 2
    assert len(done.output.strip().splitlines()) == 1
    assert words in done.output
    assert (ended / "metrics.jsonl").read_text() == before, "nothing is lost"


def test_another_text_is_named_before_the_sizes_that_it_brings(ended: Path, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text(" ".join(f"w{k}" for k in range(40)) * 20)
    words = cannot_resume(ended, "--data", str(text), "--vocabulary-size", "30", "--steps", "6").output
    assert "another text" in words
    assert words.index("another text") < words.index("--vocabulary-size 1000, this run 30")
    assert "give the same --data" in words


def test_a_given_loss_scale_wins_over_that_of_the_run(framework: str, tmp_path: Path) -> None:
    """Which goes on where it was if none is given."""
    flags = ["train", "--framework", framework, "--out", tmp_path, *launcher.SMALL, "--compression", "fp16"]
    for steps, given in (
        (2, ["--loss-scale", "64"]),
        (4, []),
        (6, ["--loss-scale", "16"]),
        (8, ["--loss-scale-growth-steps", "1"]),
    ):
        pools.hvd_lm(2, *flags, *given, "--steps", str(steps), "--resume", "auto")
    scales = [row["loss_scale"] for row in launcher.metrics(tmp_path)]
    assert scales == [64, 64, 64, 64, 16, 16, 32, 64]


def test_what_does_not_fit_ends_the_whole_job(ended: Path) -> None:
    done = cannot_resume(ended, "--hidden-size", "48", ranks=2)
    assert len([line for line in done.output.splitlines() if "hvd-lm: " in line]) == 1, done.output


def test_no_checkpoint_there(tmp_path: Path) -> None:
    done = cannot_resume(tmp_path / "new", "--steps", "2", source=tmp_path / "nowhere")
    assert done.code == 2
    assert "no checkpoint in" in done.output
    done = resume(tmp_path / "new", "--steps", "2")  # auto begins, and says where it looked
    assert f"--resume auto: no checkpoint in {tmp_path / 'new'} yet, so the run begins" in done.output
    assert len(launcher.metrics(tmp_path / "new")) == 2


def test_going_on_from_an_older_checkpoint_keeps_the_newer_one_aside(ended: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    resume(elsewhere, "--steps", "5", source=ended)
    assert [row["step"] for row in launcher.metrics(elsewhere)] == [5]
    resume(elsewhere, "--steps", "8", "--checkpoint-every", "1", "--keep-checkpoints", "9")
    resume(elsewhere, "--steps", "7", source=elsewhere / "checkpoints" / "step-00000006")
    assert [row["step"] for row in launcher.metrics(elsewhere)] == [5, 6, 7]
    assert (elsewhere / "earlier-1" / "checkpoints" / "step-00000008").is_dir()


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(ended: Path) -> None:
    newest = ended / "checkpoints" / "step-00000004"
    content = (newest / "optimizer.safetensors").read_bytes()
    (newest / "optimizer.safetensors").write_bytes(content[:-7])
    done = resume(ended, "--steps", "6")
    assert "step-00000004" in done.output
    assert "optimizer.safetensors was altered or truncated" in done.output
    assert [row["step"] for row in launcher.metrics(ended)] == [1, 2, 3, 4, 5, 6]


def test_nothing_left_to_do_is_said(tmp_path: Path) -> None:
    resume(tmp_path, "--steps", "2")
    done = resume(tmp_path, "--steps", "2")
    assert "has its 2 steps already" in done.output
    assert len(launcher.metrics(tmp_path)) == 2
