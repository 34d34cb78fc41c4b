"""Texts with labels: rows of a TSV, CSV or JSON Lines file, or files in one folder for each label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvd_lm.data import tables
from hvd_lm.data.corpus import read_files
from hvd_lm.data.walk import STANDARD_INPUT, TextFile, find_files
from hvd_lm.errors import DataError


@dataclass(frozen=True)
class Columns:
    """Where a row has its text and its label: names of a header or of JSON keys; or numbers from 1, of rows without a header."""

    text: str = "text"
    label: str | None = "label"
    """None: labels are not read."""

    @property
    def of_table(self) -> tables.Columns:
        """Text, then label, if that is read."""
        both = tables.Columns((self.text, self.label or ""), ("--text-column", "--label-column"))
        return both if self.label is not None else tables.Columns(both.wanted[:1], both.flags[:1])


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
    rows: Iterator[tables.Row] | None
    if columns.label is None and (tables.kind_of(path) == ".txt" or path == STANDARD_INPUT):
        rows = ((number, [line.rstrip("\n")]) for number, line in enumerate(tables.lines_of(path), start=1))
    else:
        rows = tables.read_table(path, columns.of_table)
    if rows is None:
        raise DataError(f"{path} must be a .tsv, .csv or .jsonl file, or a folder that holds a folder for each label")
    for number, (text, *label) in rows:
        if label and not label[0]:
            raise DataError(f"{path}, row {number}: it has no label")
        yield LabelledText(text, label[0] if label else None)
