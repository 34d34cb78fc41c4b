"""Tables of texts: rows of a TSV, CSV or JSON Lines file, also compressed, of which some columns are read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_lm.data.corpus import read_files
from hvd_lm.data.walk import TextFile
from hvd_lm.errors import ConfigError, DataError

_LARGEST_FIELD = 1 << 26
"""Characters of a CSV field; Python's own limit is a long review."""
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
_JSON_LINES = (".jsonl", ".ndjson")

Row = tuple[int, list[str]]
"""Its number in the file, from 1, and what its columns have."""


@dataclass(frozen=True)
class Columns:
    """What is read of a row: names of a header or of JSON keys; or numbers from 1, of rows without a header."""

    wanted: tuple[str, ...]
    """The first is a text; the others are texts or whole numbers."""
    flags: tuple[str, ...]
    """Which name them, for messages."""

    @property
    def are_numbers(self) -> bool:
        """Raises ConfigError if one is, and the other is not, or it is 0."""
        of_numbers = [column.isdecimal() for column in self.wanted]
        if any(of_numbers) != all(of_numbers) or "0" in self.wanted:
            raise ConfigError(f"give columns by their names, or by numbers from 1, not {' and '.join(self.wanted)}")
        return all(of_numbers)


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, compressed or not."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSED), "")


def read_table(path: Path, columns: Columns) -> Iterator[Row] | None:
    """The rows of a .tsv, .csv or .jsonl file; None if it is none of them.

    Raises DataError for what is missing, damaged or lacks a column; ConfigError for columns that are neither names nor numbers.
    """
    kind = kind_of(path)
    if kind in _JSON_LINES:
        return _json_rows(path, lines_of(path), columns)
    return _table_rows(path, lines_of(path), columns, is_csv=kind == ".csv") if kind in (".tsv", ".csv") else None


def lines_of(path: Path) -> Iterator[str]:
    """With their line breaks."""
    rest = ""
    for chunk in read_files([TextFile(path)]):
        *whole, rest = (rest + chunk).split("\n")
        yield from (line + "\n" for line in whole)
    if rest:
        yield rest


def _json_rows(path: Path, lines: Iterator[str], columns: Columns) -> Iterator[Row]:
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
            other = f", and {columns.wanted[1]} a string or a whole number" if len(values) > 1 else ""
            raise DataError(f"{path}, row {number}: {columns.wanted[0]} must be a string{other}")
        yield number, list(map(str, values))


def _table_rows(path: Path, lines: Iterator[str], columns: Columns, *, is_csv: bool) -> Iterator[Row]:
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
        f"{path} has no column {' and '.join(columns.wanted)} ({has}): name them by {' and '.join(columns.flags)}, or by "
        "numbers from 1 where the rows have no header"
    )
