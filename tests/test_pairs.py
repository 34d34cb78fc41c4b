"""Texts and their translations, from lines and from tables, and what is refused."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from hvd_lm.data.pairs import Pair, read_pairs, read_sources
from hvd_lm.errors import ConfigError, DataError

PAIRS = [Pair("the cat", "die Katze"), Pair('"a dog"', "ein Hund"), Pair("it rains, a lot", "es regnet viel")]


def write(path: Path, lines: list[str]) -> Path:
    text = "".join(line + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_line_by_line(tmp_path: Path) -> None:
    """Compressed or not, several files after each other; the last line needs no line break."""
    source = write(tmp_path / "a.en.gz", [pair.source for pair in PAIRS])
    target = write(tmp_path / "a.de", [pair.target for pair in PAIRS])
    target.write_text(target.read_text().rstrip("\n"))
    assert read_pairs([source, source], [target, target]) == PAIRS * 2


def test_tables(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.tsv", ["target\tsource", *(f"{pair.target}\t{pair.source}" for pair in PAIRS)])
    assert read_pairs([rows], []) == PAIRS
    numbered = write(tmp_path / "rows.csv", ['"the cat","die\nKatze"', '"""a dog""",ein Hund', '"it rains, a lot",es regnet viel'])
    assert read_pairs([numbered], [], ("1", "2")) == PAIRS, "a line break within a text is a blank"


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of any file and of standard input, empty ones too; a column of a table."""
    lines = ["the cat", "", "a dog"]
    path = write(tmp_path / "test.en", lines)
    table = write(tmp_path / "rows.tsv", ["source\tnote", *(f"{line}\tx" for line in lines)])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
    assert read_sources([path]) == read_sources([table]) == read_sources([Path("-")]) == lines


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("x.txt", ["a\tb"], r"x\.txt \(\.txt\) is no table: give --target"),
        ("x", ["a\tb"], r"x \(no suffix\) is no table"),
        ("x.tsv", ["source\ttarget", "a b"], "row 2 has 1 column"),
        ("x.tsv", ["one\ttwo", "a\tb"], "has no column source and target .*name them by --source-column and --target-column"),
        ("x.tsv", ["source\ttarget", "a\t "], "row 2: its translation is empty"),
        ("x.tsv", ["source\ttarget", "\tb"], "row 2: its source is empty"),
        ("x.tsv", ["source\ttarget"], "no row there holds a text"),
        ("x.jsonl", ['{"source": "a", "target": null}'], "source must be a string, and target"),
    ],
)
def test_refused(name: str, lines: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as refusal:
        read_pairs([write(tmp_path / name, lines)], [])
    assert "\n" not in str(refusal.value)


def test_lines_without_their_counterpart(tmp_path: Path) -> None:
    two, three = (write(tmp_path / f"{count}.txt", ["a"] * count) for count in (2, 3))
    gap, empty = write(tmp_path / "gap.txt", ["a", ""]), write(tmp_path / "empty.txt", [])
    for sources, targets, words in [
        ([two], [three], "have 2 and 3 lines"),
        ([two, two], [two], r"2 file\(s\) of sources need as many of targets, not 1"),
        ([gap], [two], "row 2: its source is empty"),
        ([two], [gap], "row 2: its translation is empty"),
        ([empty], [empty], "is empty"),
        ([tmp_path / "nowhere"], [two], "nowhere"),
    ]:
        with pytest.raises(DataError, match=words):
            read_pairs(sources, targets)
    with pytest.raises(ConfigError, match="by their names, or by numbers from 1, not 1 and b"):
        read_pairs([write(tmp_path / "x.tsv", ["a\tb"])], [], ("1", "b"))
