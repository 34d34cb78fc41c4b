"""Scores of lines and words: against the judge, against evaluate, whatever the ranks; the rows, and what is refused."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pools
import pytest
from conftest import INSTALLED
from test_evaluation import TEXT, checkpoint_of, in_one_pass, saved

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.command_line.commands import main
from hvd_lm.data.tokenizer import TokenizerKind, train_tokenizer
from hvd_lm.errors import ConfigError, DataError
from hvd_lm.evaluation import line_losses as line_losses_module
from hvd_lm.evaluation.score import ScoreConfig
from hvd_lm.model.weights import initial_weights

LINES = ["the cat sat on the mat", "", "naïve dogs  sit", " the the the log on the mat and the dog and the cat", "log "]


def sums(scores: list[hvd_lm.LineScore]) -> list[float]:
    return [line.log_probability for line in scores]


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_a_line_by_itself(framework: str, kind: TokenizerKind, tmp_path: Path) -> None:
    folder, checkpoint = saved(tmp_path / "run", kind)
    scores = hvd_lm.score(folder, LINES, framework=framework, batch_size=2, sequence_length=7, threads=1)  # type: ignore[arg-type]
    alone = [-in_one_pass(checkpoint, f"{line}\n") for line in LINES]
    np.testing.assert_allclose(sums(scores), alone, rtol=1e-6)
    for line, given in zip(scores, LINES, strict=True):
        *words, end = line.words
        named = [word.word for word in words if word.word]
        assert named == (given.split() if kind != "char" else train_tokenizer([TEXT], "char").decode(
            checkpoint.tokenizer.encode_prompt(given)).split())  # fmt: skip
        assert end.word == "<eos>"
        assert line.tokens == len(checkpoint.tokenizer.encode(f"{given}\n"))
    without = hvd_lm.score(folder, LINES, framework=framework, end_of_line=False, threads=1)  # type: ignore[arg-type]
    ends = [line.words[-1].log_probability for line in scores]
    np.testing.assert_allclose(np.array(sums(without)) + ends, alone, rtol=1e-5)


def test_sums_are_those_of_evaluate(framework: str, tmp_path: Path) -> None:
    """Of running text, and of every line as a text of its own."""
    folder, _ = saved(tmp_path / "run")
    path = tmp_path / "text.txt"
    settings = {"framework": framework, "batch_size": 3, "sequence_length": 7, "threads": 1}
    lines = TEXT.splitlines()
    path.write_text(TEXT)
    judged = hvd_lm.evaluate(folder, path, **settings)  # type: ignore[arg-type]
    carried = hvd_lm.score(folder, lines, state="carried", **settings)  # type: ignore[arg-type]
    assert sum(sums(carried)) == pytest.approx(-judged.loss * judged.tokens, rel=1e-6)
    assert sum(line.tokens for line in carried) == judged.tokens
    alone = []
    for line in lines[:2]:
        path.write_text(f"{line}\n")
        judged = hvd_lm.evaluate(folder, path, **settings)  # type: ignore[arg-type]
        alone.append(-judged.loss * judged.tokens)
    assert sums(hvd_lm.score(folder, lines, **settings))[:2] == pytest.approx(alone, rel=1e-6)  # type: ignore[arg-type]
    assert sums(carried)[1] != pytest.approx(alone[1], rel=1e-3)


def test_adaptive_softmax(framework: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(train_tokenizer([TEXT], "word"))
    model = replace(checkpoint.model, softmax="adaptive", adaptive_cutoffs=(4, 9), adaptive_division=2.0)
    moments = replace(checkpoint.optimizer_state, moments={})
    made = replace(checkpoint, model=model, weights=initial_weights(model, seed=3), optimizer_state=moments)
    made = replace(made, optimizer=replace(made.optimizer, optimizer="sgd"))
    checkpoints.save(made, tmp_path / "run", keep=1)
    (tmp_path / "text.txt").write_text(TEXT)
    judged = hvd_lm.evaluate(tmp_path / "run", tmp_path / "text.txt", framework=framework, threads=1)  # type: ignore[arg-type]
    scores = hvd_lm.score(tmp_path / "run", TEXT.splitlines(), state="carried", framework=framework, threads=1)  # type: ignore[arg-type]
    assert sum(sums(scores)) == pytest.approx(-judged.loss * judged.tokens, rel=1e-6)


def test_a_long_line_is_read_with_few_beside_it(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, checkpoint = saved(tmp_path / "run")
    widths = []
    read = line_losses_module._losses
    monkeypatch.setattr(line_losses_module, "MOST_TOKENS", 40)
    monkeypatch.setattr(line_losses_module, "_losses", lambda *given: widths.append(given[1].shape) or read(*given))
    lines = [*LINES, "the cat " * 18]
    scores = hvd_lm.score(folder, lines, framework=framework, threads=1)  # type: ignore[arg-type]
    np.testing.assert_allclose(sums(scores), [-in_one_pass(checkpoint, f"{line}\n") for line in lines], rtol=1e-6)
    assert widths == [(37, 1), (14, 2), (4, 3)], "tokens of the longest, and lines beside each other"


@pytest.mark.ranks
@pytest.mark.parametrize("state", ["zero", "carried"])
@pytest.mark.parametrize("model_parallel", [1, 2])
def test_any_ranks_write_the_same(framework: str, state: str, model_parallel: int, tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "run")
    (tmp_path / "text.txt").write_text(TEXT + "\n".join(LINES))
    rows = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.tsv"
        split = str(model_parallel if ranks == 2 else 1)
        pools.hvd_lm(
            ranks, "score", "--checkpoint", folder, "--data", tmp_path / "text.txt", "--framework", framework, "--state", state,
            "--batch-size", "2", "--sequence-length", "7", "--model-parallel", split, "--out", out,
        )  # fmt: skip
        rows.append([list(map(float, line.split("\t"))) for line in out.read_text().splitlines()])
    assert len(rows[0]) == len(TEXT.splitlines()) + len(LINES)
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5)
    assert sum(row[0] for row in rows[1]) == pytest.approx(sum(row[0] for row in rows[0]), rel=1e-6)


def test_rows_of_an_n_best_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = saved(tmp_path / "run")
    command = ["score", "--checkpoint", str(folder), "--framework", INSTALLED[0], "--columns", "2"]
    text = "utt-1\t-3.5\tthe zebra sat\nutt-1\t-4\tthe\tcat"

    def rows(*flags: str) -> list[list[str]]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert main([*command, *flags]) == 0
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    totals, words = rows(), rows("--words")
    assert [[*row[:2], *row[3:]] for row in totals] == [["utt-1", "-3.5", "4", "1"], ["utt-1", "-4", "3", "0"]]
    assert [row[2:4] + row[5:] for row in words] == [
        ["1", "the", "0"], ["1", "zebra", "1"], ["1", "sat", "0"], ["1", "<eos>", "0"],
        ["2", "the", "0"], ["2", "cat", "0"], ["2", "<eos>", "0"],
    ]  # fmt: skip
    assert float(totals[0][2]) == pytest.approx(sum(float(row[4]) for row in words[:4]))
    assert [row[3] for row in rows("--no-end-of-line")] == ["3", "2"]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = saved(tmp_path / "run")
    good, empty = tmp_path / "good.txt", tmp_path / "empty.txt"
    good.write_text("a\tthe cat\nthe mat\n")
    empty.write_text("\n")
    of_good = ["--data", str(good)]
    for flags, said in (
        ([*of_good, "--columns", "1"], "line 2 has 0 tab(s)"),
        (["--data", str(empty)], "is empty"),
        (["--data", str(tmp_path / "none")], "cannot read"),
        ([*of_good, "--columns", "-1"], "--columns must not be negative"),
        ([*of_good, "--batch-size", "0"], "--batch-size must be at least 1"),
        ([*of_good, "--out", str(tmp_path / "no" / "out.tsv")], "out.tsv: No such file or directory; check the name"),
    ):
        assert main(["score", "--checkpoint", str(folder), "--framework", INSTALLED[0], *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


@pytest.mark.parametrize(
    ("data", "out", "said"),
    [
        ("text.txt", "text.txt", "is one of the texts to score"),
        ("link.txt", "text.txt", "is one of the texts to score"),
        ("texts", "texts/a.txt", "is one of the texts to score"),
        ("none.txt", "old.tsv", "cannot read"),
        ("bad.txt", "old.tsv", "UTF-8"),
    ],
)
def test_a_file_stays_until_all_is_scored(
    data: str, out: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = saved(tmp_path / "run")
    monkeypatch.setattr("hvd_lm.evaluation.score._MOST_LINES", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for name in ("text.txt", "old.tsv", "texts/a.txt"):
        (tmp_path / name).write_text("the cat\n")
    (tmp_path / "link.txt").symlink_to("text.txt")
    (tmp_path / "bad.txt").write_bytes(b"the cat\n" * 20_000 + b"\xff\n")
    before = sorted(tmp_path.iterdir())
    assert main(["score", "--checkpoint", str(folder), "--framework", INSTALLED[0], "--data", data, "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert (tmp_path / out).read_text() == "the cat\n"
    assert sorted(tmp_path.iterdir()) == before


def test_lines_from_python_are_checked(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "run")
    with pytest.raises(ConfigError, match="not one string"):
        hvd_lm.score(folder, "the cat", framework=INSTALLED[0])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="line 2 must be a string without a line break"):
        hvd_lm.score(folder, ["the", "a\nb"], framework=INSTALLED[0])  # type: ignore[arg-type]
    assert hvd_lm.score(folder, [], framework=INSTALLED[0]) == []  # type: ignore[arg-type]
    assert ScoreConfig("x", "y").data == (Path("y"),)  # type: ignore[arg-type]
    assert math.isfinite(sum(sums(hvd_lm.score(folder, ("the",), framework=INSTALLED[0]))))  # type: ignore[arg-type]
