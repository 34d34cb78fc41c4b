"""Texts with labels, from every kind of file, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hvd_lm.data.labelled import Columns, LabelledText, read_labelled
from hvd_lm.errors import ConfigError, DataError

ROWS = [("a fine film", "good"), ('it says "no"', "bad"), ("a, b", "good")]
EXPECTED = [LabelledText(*row) for row in ROWS]


def test_tsv(tmp_path: Path) -> None:
    """A quote is a quote there."""
    path = tmp_path / "rows.tsv"
    path.write_text("id\tlabel\ttext\n" + "".join(f"{n}\t{label}\t{text}\n" for n, (text, label) in enumerate(ROWS)))
    assert read_labelled([path], Columns()) == EXPECTED
    assert read_labelled([path, path], Columns("text", "label")) == EXPECTED * 2


def test_csv_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    text = 'good,a fine film\nbad,"it says ""no"""\n\ngood,"a, b"\n'
    path.write_bytes(gzip.compress(text.encode()))
    assert read_labelled([path], Columns("2", "1")) == EXPECTED


def test_csv_with_a_line_break_in_a_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"one\ntwo",x\n')
    assert read_labelled([path], Columns()) == [LabelledText("one\ntwo", "x")]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"review": text, "stars": stars} for stars, (text, _) in enumerate(ROWS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_labelled([path], Columns("review", "stars"))
    assert found == [LabelledText(text, str(stars)) for stars, (text, _) in enumerate(ROWS)]


def test_a_folder_for_each_label(tmp_path: Path) -> None:
    for number, (text, label) in enumerate(ROWS):
        folder = tmp_path / "texts" / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(text)
    found = read_labelled([tmp_path / "texts"], Columns())
    assert sorted(found, key=lambda its: its.text) == sorted(EXPECTED, key=lambda its: its.text)


def test_texts_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line each, of a .txt file and of standard input; or any file, whose labels are not read."""
    path = tmp_path / "lines.txt"
    path.write_text("one\n\nthree\n")
    assert [its.text for its in read_labelled([path], Columns(label=None))] == ["one", "", "three"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"a b\n")))
    assert read_labelled([Path("-")], Columns(label=None)) == [LabelledText("a b", None)]
    table = tmp_path / "rows.tsv"
    table.write_text("text\nfour\n")
    assert read_labelled([table], Columns(label=None)) == [LabelledText("four", None)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.tsv", "a\tb\nc\td\n", "has no column text and label"),
        ("x.tsv", "text\tlabel\nonly\n", "row 2 has 1 column"),
        ("x.tsv", "text\tlabel\nthis\t\n", "row 2: it has no label"),
        ("x.tsv", "text\tlabel\n", "no row there holds a text"),
        ("x.csv", 'text,label\n"open,x\n', "row 2 is damaged"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{\n', "row 2 is no JSON"),
        ("x.jsonl", '{"text": "a"}\n', "has no column text and label"),
        ("x.jsonl", "[1]\n", "row 1 has list"),
        ("x.jsonl", '{"text": 3, "label": "a"}\n', "text must be a string, and label"),
        ("x.jsonl", '{"text": "a", "label": null}\n', "text must be a string, and label"),
        ("x.txt", "a\n", "must be a .tsv, .csv or .jsonl file"),
    ],
)
def test_refused(name: str, content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=words) as refusal:
        read_labelled([path], Columns())
    assert name in str(refusal.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tsv"):
        read_labelled([tmp_path / "none.tsv"], Columns())
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "text.txt").write_text("a")
    with pytest.raises(DataError, match="one folder for each label"):
        read_labelled([tmp_path / "flat"], Columns())
    for columns in (Columns("1", "label"), Columns("0", "1")):
        with pytest.raises(ConfigError, match="by numbers from 1"):
            read_labelled([_table(tmp_path)], columns)


def _table(folder: Path) -> Path:
    path = folder / "table.tsv"
    path.write_text("a\tb\n")
    return path
