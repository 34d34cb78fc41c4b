"""Texts with labels: rows of a TSV, CSV or JSON Lines file, or files in one folder for each label."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_lm.data.corpus import read_files
from hvd_lm.data.walk import STANDARD_INPUT, TextFile, find_files
from hvd_lm.errors import ConfigError, DataError

_LARGEST_FIELD = 1 << 26
"""Characters of a CSV field; Python's own limit is a long review."""
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Columns:
    """Where a row has its text and its label: names of a header or of JSON keys; or numbers from 1, of rows without a header."""

    text: str = "text"
    label: str | None = "label"
    """None: labels are not read."""

    @property
    def wanted(self) -> list[str]:
        """Text, then label, if that is read."""
        return [self.text] if self.label is None else [self.text, self.label]

    @property
    def are_numbers(self) -> bool:
        """Raises ConfigError if one is, and the other is not, or it is 0."""
        of_numbers = [column.isdecimal() for column in self.wanted]
        if any(of_numbers) != all(of_numbers) or "0" in self.wanted:
            raise ConfigError(f"give columns by their names, or by numbers from 1, not {' and '.join(self.wanted)}")
        return all(of_numbers)


@dataclass(frozen=True)
class LabelledText:
    """One text."""

    text: str
    label: str | None
    """None where labels are not read."""


def read_labelled(paths: Sequence[Path], columns: Columns) -> list[LabelledText]:
    """All texts of `paths`, in order: .tsv, .csv and .jsonl files, also compressed, and folders that hold a folder for each label.

    Where labels are not read, also the lines of .txt files and of standard input.

    Raises DataError for what is missing, damaged, no such file or lacks a column; ConfigError for columns that are neither names
    nor numbers.
    """
    found: list[LabelledText] = []
    for path in paths:
        found += _of_folder(path, columns) if path.is_dir() else _of_file(path, columns)
    if not found:
        raise DataError(f"{' '.join(map(str, paths))}: no row there holds a text")
    return found


def _of_folder(folder: Path, columns: Columns) -> Iterator[LabelledText]:
    """Files below ``folder/<label>/``."""
    for file in find_files([folder]):
        inside = file.path.relative_to(folder).parts
        if columns.label is not None and len(inside) < 2:
            raise DataError(f"{file} lies in no folder of a label: a folder of texts needs one folder for each label")
        yield LabelledText("".join(read_files([TextFile(file.path)])), inside[0] if columns.label is not None else None)


def _of_file(path: Path, columns: Columns) -> Iterator[LabelledText]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSED), "")
    lines = _lines(path)
    rows: Iterator[tuple[int, list[str]]]
    if columns.label is None and (kind == ".txt" or path == STANDARD_INPUT):
        rows = ((number, [line.rstrip("\n")]) for number, line in enumerate(lines, start=1))
    elif kind in _JSON_LINES:
        rows = _json_rows(path, lines, columns)
    elif kind in (".tsv", ".csv"):
        rows = _table_rows(path, lines, columns, is_csv=kind == ".csv")
    else:
        raise DataError(f"{path} must be a .tsv, .csv or .jsonl file, or a folder that holds a folder for each label")
    for number, (text, *label) in rows:
        if label and not label[0]:
            raise DataError(f"{path}, row {number}: it has no label")
        yield LabelledText(text, label[0] if label else None)


def _lines(path: Path) -> Iterator[str]:
    """With their line breaks."""
    rest = ""
    for chunk in read_files([TextFile(path)]):
        *whole, rest = (rest + chunk).split("\n")
        yield from (line + "\n" for line in whole)
    if rest:
        yield rest


def _json_rows(path: Path, lines: Iterator[str], columns: Columns) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, row {number} is no JSON: {error}") from error
        if not isinstance(row, dict) or any(column not in row for column in columns.wanted):
            has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise DataError(_lacks(path, f"row {number} has {has}", columns))
        values = [row[column] for column in columns.wanted]
        if not isinstance(values[0], str) or any(isinstance(value, (dict, list, float, type(None))) for value in values):
            raise DataError(f"{path}, row {number}: a text must be a string, and a label a string or a whole number")
        yield number, list(map(str, values))


def _table_rows(path: Path, lines: Iterator[str], columns: Columns, *, is_csv: bool) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_LARGEST_FIELD)
    # In TSV files of text a quote is one.
    rows = csv.reader(lines, strict=True) if is_csv else csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        if columns.are_numbers:
            places = [int(column) - 1 for column in columns.wanted]
        else:
            header = next(rows, [])
            if any(column not in header for column in columns.wanted):
                raise DataError(_lacks(path, f"its first row is {', '.join(header)[:200]}", columns))
            places = [header.index(column) for column in columns.wanted]
        for row in rows:
            if not row:
                continue
            if len(row) <= max(places):
                raise DataError(f"{path}, row {rows.line_num} has {len(row)} column(s), not {max(places) + 1}")
            yield rows.line_num, [row[place] for place in places]
    except csv.Error as error:
        raise DataError(f"{path}, row {rows.line_num} is damaged: {error}") from error


def _lacks(path: Path, has: str, columns: Columns) -> str:
    return (
        f"{path} has no column {' and '.join(columns.wanted)} ({has}): name them by --text-column and --label-column, or by "
        "numbers from 1 where the rows have no header"
    )
