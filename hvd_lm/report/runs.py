"""Training runs as a report needs them: their metrics, settings and names, read from the folders of the runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvd_lm.conform import shown
from hvd_lm.errors import ConfigError, DataError, why
from hvd_lm.settings_file import read_yaml

Values = NDArray[np.float64]
"""One value a step; NaN where there is none."""
_LARGEST_STEP = 2**53
"""Beyond it floats skip integers."""
DRAWN_MAGNITUDE = 1e30
"""A larger value is not drawn: the run has diverged, and its picture should show the rest."""

COLUMNS = (
    "step", "tokens", "seconds", "loss", "validation_loss", "perplexity", "tokens_per_second", "gradient_norm", "learning_rate",
    "loss_scale", "skipped", "skipped_steps", "bytes_sent", "communication_seconds_least", "communication_seconds_most",
    "predicted_seconds", "predicted_communication_seconds",
)  # fmt: skip
SENT = "sent"
"""A column that is made of another: bytes that a rank has sent since the first step."""
STEP = "step_seconds"
"""Another: what a step took, where it was predicted."""


@dataclass(frozen=True)
class Run:
    """What a folder tells of its run."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    """config.yaml, sections flattened; empty if it is missing."""
    columns: Mapping[str, Values]
    """Name -> value of every step, in the order of the steps."""

    def has(self, name: str) -> bool:
        """Whether there is any value of this name."""
        return bool(np.isfinite(self.columns[name]).any())

    def last(self, name: str) -> float | None:
        """The last value of this name."""
        values = self.columns[name]
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, each once. Raises DataError for one that cannot be read."""
    for folder in folders:
        _require_metrics(folder)
    unique = {folder.resolve(): folder for folder in folders}
    names = distinct_names(list(unique))
    return [Run(name, folder, _settings(folder), _columns(folder)) for name, folder in zip(names, unique.values(), strict=True)]


def _require_metrics(folder: Path) -> None:
    try:
        if (folder / "metrics.jsonl").is_file():
            return
    except OSError as error:
        raise DataError(f"cannot read {folder}: {why(error, folder)}") from error
    inside = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    example = f", such as {inside[0]}" if inside else ""
    raise DataError(f"no metrics.jsonl in {folder}: give the --out folder of a training run{example}")


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many of its parents as tell it from the others."""

    def name(folder: Path) -> str:
        for count in range(1, len(folder.parts) + 1):
            end = folder.parts[-count:]
            if sum(other.parts[-count:] == end for other in folders) == 1:
                break
        return str(Path(*end))

    return [name(folder) for folder in folders]


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        return read_yaml(path) if path.exists() else {}
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error, path)}") from error
    except ConfigError as error:
        raise DataError(str(error).replace("--config ", "")) from error


def _columns(folder: Path) -> dict[str, Values]:
    rows = read_rows(folder / "metrics.jsonl")
    columns = {name: np.array([row.get(name, math.nan) for row in rows]) for name in COLUMNS}
    with np.errstate(over="ignore"):
        sent = np.nancumsum(columns["bytes_sent"])
    # A run of one process sends nothing: there is nothing to draw over.
    took = np.diff(columns["seconds"], prepend=0.0 if columns["step"][0] == 1 else math.nan)
    return {
        **columns,
        SENT: np.where(sent > 0, sent, np.nan),
        STEP: np.where(np.isfinite(columns["predicted_seconds"]), took, np.nan),
    }


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file by step; where a step comes twice, the later row. An incomplete last line is left out.

    Raises DataError if the file cannot be read, holds no row, or holds a line that is not one.
    """
    try:
        *complete, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error, path)}") from error
    rows = {row["step"]: row for row in (_row(line, f"{path}, line {n}") for n, line in enumerate(complete, 1) if line.strip())}
    # A run in progress is just writing it, or was killed while it did.
    with suppress(DataError):
        row = _row(rest, "")
        rows[row["step"]] = row
    if not rows:
        raise DataError(f"{path} holds no step yet: wait for the first, or leave {path.parent} out")
    return [rows[step] for step in sorted(rows)]


def _row(line: bytes, where: str) -> dict[str, float]:
    """The numbers in a line; null is NaN. Raises DataError if it is not a row."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where} is not JSON: mend or remove that line") from None
    if not isinstance(content, dict) or type(content.get("step")) is not int or not 0 <= content["step"] <= _LARGEST_STEP:
        raise DataError(f"{where} is no object with a step: mend or remove that line")
    row = {}
    for name in COLUMNS:
        value = content.get(name)
        if not isinstance(value, int | float | None):
            raise DataError(f"{where}: {name} is {shown(value)}, not a number: mend or remove that line")
        row[name] = math.nan
        with suppress(OverflowError):
            if value is not None and math.isfinite(value):
                row[name] = float(value)
    return row


def drawable(values: Values) -> Values:
    """`values`, with NaN for those that are too large to be drawn."""
    return np.where(np.abs(values) < DRAWN_MAGNITUDE, values, np.nan)
