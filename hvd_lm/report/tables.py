"""Tables of a report: how runs ended, what they were, and in which settings they differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from hvd_lm.config import ModelConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model import stages
from hvd_lm.report.runs import Run, drawable

NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Line:
    """A line of a table: a name, and a cell for each run."""

    name: str
    cells: tuple[str, ...]
    best: float | None = None
    """The number in the cells that are the best of several runs."""
    numbers: tuple[float | None, ...] = ()

    def is_best(self, run: int) -> bool:
        return self.best is not None and self.numbers[run] == self.best


def summary(runs: Sequence[Run]) -> list[Line]:
    """How the runs ended, or how far they are."""

    def line(
        name: str,
        number: Callable[[Run], float | None],
        text: Callable[[float], str],
        best: Callable[[Sequence[float]], float] | None = None,
    ) -> Line:
        numbers = tuple(map(number, runs))
        known = [value for value in numbers if value is not None]
        winner = best(known) if best and len(known) > 1 and len(set(known)) > 1 else None
        return Line(name, tuple(NOTHING if value is None else text(value) for value in numbers), winner, numbers)

    losses_compare = not incomparable(runs)
    lowest = min if losses_compare else None
    return [
        Line("framework", tuple(shown(run.settings.get("framework", NOTHING)) for run in runs)),
        line("ranks", ranks, _count),
        Line("model", tuple(map(_model, runs))),
        line("parameters", parameters, _count),
        Line("steps", tuple(map(_steps, runs))),
        line("tokens read", lambda run: run.last("tokens"), _count),
        line("loss of the last step", lambda run: run.last("loss"), "{:.4f}".format, lowest),
        line("best validation loss", lambda run: _best(run, "validation_loss"), "{:.4f}".format, lowest),
        line("perplexity there", lambda run: _best(run, "perplexity"), "{:,.2f}".format, lowest),
        line("reached at step", lambda run: _best(run, "step"), _count),
        line("tokens per second, median", _median_throughput, _count, max),
        line("waits for gradients, least of all ranks", partial(_share_waited, "least"), "{:.0%} of a step".format),
        line("waits for gradients, most of all ranks", partial(_share_waited, "most"), "{:.0%} of a step".format),
        line("skipped steps", lambda run: run.last("skipped_steps"), _count),
        line("training time", lambda run: run.last("seconds"), duration),
    ]


def _count(number: float) -> str:
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Two units at most, as 45.3 s, 12 min 05 s or 3 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def ranks(run: Run) -> float | None:
    """Ranks of the job, if the tokens of its last full windows tell them: metrics and settings do not hold them."""
    names = ("batch_size", "sequence_length", "backward_passes_per_step", "model_parallel")
    sizes: list[Any] = [run.settings.get(name) for name in names]
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        return None
    *window, model_parallel = sizes
    per_rank = math.prod(window)
    before_first = [0.0] if run.columns["step"][0] == 1 else []
    read = np.diff(np.concatenate((before_first, drawable(run.columns["tokens"]))))
    # A window at the end of an epoch is shorter, and hardly ever a multiple.
    full = read[(read > 0) & (read % per_rank == 0)]
    return float(full[-2:].max() / per_rank * model_parallel) if len(full) else None


def _model_config(run: Run) -> ModelConfig | None:
    with suppress(ConfigError, TypeError, KeyError):
        of_softmax = ("softmax", "adaptive_cutoffs", "adaptive_division") if run.settings.get("softmax") == "adaptive" else ()
        return ModelConfig(
            vocabulary_size=run.settings["vocabulary_size"],
            embedding_size=run.settings["embedding_size"],
            hidden_size=run.settings["hidden_size"],
            layers=run.settings["layers"],
            cell=run.settings.get("cell", "lstm"),  # runs from before there was a choice lack it
            projection_size=run.settings.get("projection_size"),
            tie_embedding=run.settings["tie_embedding"],
            **{name: run.settings[name] for name in of_softmax},
        )
    return None


def _model(run: Run) -> str:
    model = _model_config(run)
    if model is None or model.vocabulary_size is None:
        return NOTHING
    hidden = model.hidden_size if isinstance(model.hidden_size, tuple) else (model.hidden_size,)
    widths = " → ".join(f"{width:,}" for width in (model.vocabulary_size, model.embedding_size, *hidden))
    cell = "" if model.cell == "lstm" else f"{model.cell} "
    projected = f" projected to {model.projection_size:,}" if model.projection_size else ""
    return f"{widths}, {len(model.units)} {cell}{'layer' if len(model.units) == 1 else 'layers'}{projected}"


def parameters(run: Run) -> float | None:
    """Trained numbers of the model."""
    model = _model_config(run)
    if model is None or model.vocabulary_size is None:
        return None
    return float(sum(math.prod(parameter.shape) for parameter in stages.parameters(model).values()))


def _steps(run: Run) -> str:
    first, last = int(run.columns["step"][0]), int(run.columns["step"][-1])
    text = f"{last:,}"
    goal = run.settings.get("steps")
    # With epochs too, the shorter one holds, and only the run knows which that is.
    if type(goal) is int and goal > last and run.settings.get("epochs") is None:
        text += f" of {goal:,}"
    return f"{text}, from {first:,} on" if first > 1 else text


def _best(run: Run, name: str) -> float | None:
    """The value of this name at the step with the lowest validation loss."""
    losses = run.columns["validation_loss"]
    if not run.has("validation_loss"):
        return None
    value = float(run.columns[name][np.nanargmin(losses)])
    return value if math.isfinite(value) else None


def _median_throughput(run: Run) -> float | None:
    values = run.columns["tokens_per_second"]
    return statistics.median(values[np.isfinite(values)].tolist()) if run.has("tokens_per_second") else None


def _share_waited(which: Literal["least", "most"], run: Run) -> float | None:
    """Median over the steps of the time that this rank waited in one."""
    # A row has the waits of the step before.
    waits, steps = run.columns[f"communication_seconds_{which}"][1:], np.diff(run.columns["seconds"], prepend=0.0)[:-1]
    shares = waits[np.isfinite(waits) & (steps > 0)] / steps[np.isfinite(waits) & (steps > 0)]
    return statistics.median(shares.tolist()) if len(shares) else None


def incomparable(runs: Sequence[Run]) -> list[str]:
    """Names of the settings, among those that make losses incomparable, in which the runs differ."""
    what = ("vocabulary_size", "data", "validation_data", "validation_share", "validation_cut")
    return [line.name for line in differences(runs) if line.name in what]


def differences(runs: Sequence[Run]) -> list[Line]:
    """The settings that are not the same in all runs."""
    where = ("out", "resume")  # say nothing of how a run learns
    return [line for line in all_settings(runs) if len(set(line.cells)) > 1 and line.name not in where]


def all_settings(runs: Sequence[Run]) -> list[Line]:
    """Every setting that any of the runs has."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [Line(name, tuple(shown(run.settings.get(name, NOTHING)) for run in runs)) for name in names]


def shown(value: Any) -> str:
    """A setting as YAML has it, on one line."""
    if isinstance(value, list):
        return " ".join(map(shown, value)) or "none"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
