"""Texts and their translations: two files, line by line; or rows of a TSV, CSV or JSON Lines file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvd_lm.data.tables import Columns, kind_of, lines_of, read_table
from hvd_lm.data.walk import STANDARD_INPUT
from hvd_lm.errors import DataError

COLUMNS = ("source", "target")
"""Unless said otherwise."""


@dataclass(frozen=True)
class Pair:
    """A text and its translation, each on one line."""

    source: str
    target: str


def read_pairs(sources: Sequence[Path], targets: Sequence[Path], columns: tuple[str, str] = COLUMNS) -> list[Pair]:
    """All pairs of `sources`, in order. Of as many `targets` line n translates line n of a source; without them each of `sources`
    is a table (.tsv, .csv, .jsonl) with these two `columns`. Files may be compressed.

    Raises DataError for what is missing, damaged, empty or without its counterpart; ConfigError for columns that are neither names
    nor numbers.
    """
    if not targets:
        return [pair for path in sources for pair in _of_table(path, columns)]
    if len(sources) != len(targets):
        raise DataError(f"{len(sources)} file(s) of sources need as many of targets, not {len(targets)}: their lines go together")
    return [pair for source, target in zip(sources, targets, strict=True) for pair in _of_lines(source, target)]


def read_sources(paths: Sequence[Path], column: str = COLUMNS[0]) -> list[str]:
    """What is to be translated: the lines of files and of standard input; of tables this column.

    Raises DataError for what is missing or damaged, ConfigError for a column that is neither a name nor a number.
    """
    found: list[str] = []
    for path in paths:
        rows = None if path == STANDARD_INPUT else read_table(path, Columns((column,), ("--source-column",)))
        texts = lines_of(path) if rows is None else (text for _, (text,) in rows)
        found += map(_on_one_line, texts)
    return found


def _of_table(path: Path, columns: tuple[str, str]) -> Iterator[Pair]:
    rows = read_table(path, Columns(columns, ("--source-column", "--target-column")))
    if rows is None:
        kind = kind_of(path) or "no suffix"
        raise DataError(
            f"{path} ({kind}) is no table: give --target, the file whose lines translate its own, or a .tsv, .csv or .jsonl file "
            "with a column of each"
        )
    found = [_pair(path, number, source, target) for number, (source, target) in rows]
    if not found:
        raise DataError(f"{path}: no row there holds a text")
    yield from found


def _of_lines(source: Path, target: Path) -> Iterator[Pair]:
    both = list(lines_of(source)), list(lines_of(target))
    if len(both[0]) != len(both[1]):
        counts = f"{len(both[0]):,} and {len(both[1]):,} lines"
        raise DataError(f"{source} and {target} have {counts}: line n of one must translate line n of the other")
    if not both[0]:
        raise DataError(f"{source} is empty")
    for number, texts in enumerate(zip(*both, strict=True), start=1):
        yield _pair(source, number, *texts)


def _pair(path: Path, number: int, source: str, target: str) -> Pair:
    pair = Pair(_on_one_line(source), _on_one_line(target))
    for which, text in (("source", pair.source), ("translation", pair.target)):
        if not text:
            raise DataError(f"{path}, row {number}: its {which} is empty: leave out what is not translated")
    return pair


def _on_one_line(text: str) -> str:
    """A line break ends a source."""
    return " ".join(text.splitlines()).strip()
