"""Learning curves of training runs, compared: pictures, and one HTML page that needs nothing beside it.

Reads what rank 0 wrote of a run, ``metrics.jsonl`` and ``config.yaml``, while it trains or afterwards. Needs no framework.
"""

from __future__ import annotations

import base64
import io
import json
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig, make_paths, read_yaml, require
from hvd_lm.errors import ConfigError, DataError
from hvd_lm.weights import weight_shapes

if TYPE_CHECKING:
    # A training should not pay for the import of matplotlib.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Values = NDArray[np.float64]
"""One value a step; NaN where there is none."""


@dataclass(frozen=True)
class ReportConfig:
    """Draw the learning curves of training runs, compared, as PNG files and one HTML page."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of training runs (their --out); a run may still be in progress."""
    out: Path = Path("report")
    """Folder for index.html and the PNG files; those of an earlier report are replaced."""
    smoothing: int | None = None
    """Steps that the strong curves are averaged over; the pale ones show every step. None: a fortieth of a run, if it has
    over 100 steps. 1: no smoothing."""

    def __post_init__(self) -> None:
        make_paths(self, "runs", "out")
        require(len(self.runs) > 0, "give the folders of one or more training runs: hvd-lm report DIR...")
        require(self.smoothing is None or self.smoothing >= 1, f"--smoothing must be at least 1, not {self.smoothing}")


def report(config: ReportConfig) -> Path:
    """Write the PNG files and the page; returns the path of the page, ``index.html``.

    Raises DataError for a run that cannot be read, ConfigError if `config.out` cannot be written.
    """
    runs = read_runs(config.runs)
    plots = [plot for plot in PLOTS if plot.has_data(runs)]
    light = {plot.name: png(plot, runs, config.smoothing, LIGHT) for plot in plots}
    dark = {plot.name: png(plot, runs, config.smoothing, DARK) for plot in plots}
    pictures = [
        Picture(plot.title, plot.caption, describe(plot, runs), _data_uri(light[plot.name]), _data_uri(dark[plot.name]))
        for plot in plots
    ]
    files = {f"{name}.png": content for name, content in light.items()}
    files["index.html"] = page(runs, pictures, config.smoothing).encode(errors="backslashreplace")
    _write(config.out, files)
    return config.out / "index.html"


# --- runs ------------------------------------------------------------------------------------------------

COLUMNS = (
    "step", "tokens", "seconds", "loss", "validation_loss", "perplexity", "tokens_per_second", "gradient_norm", "learning_rate",
    "loss_scale", "skipped", "skipped_steps",
)  # fmt: skip


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
    if (folder / "metrics.jsonl").is_file():
        return
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
    if not path.exists():
        return {}
    try:
        return read_yaml(path)
    except ConfigError as error:
        raise DataError(str(error).replace("--config ", "")) from error


def _columns(folder: Path) -> dict[str, Values]:
    rows = read_rows(folder / "metrics.jsonl")
    return {name: np.array([row.get(name, math.nan) for row in rows]) for name in COLUMNS}


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file by step; where a step comes twice, the later row. An incomplete last line is left out.

    Raises DataError if the file cannot be read, holds no row, or holds a line that is not one.
    """
    try:
        *complete, rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
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
    if not isinstance(content, dict) or type(content.get("step")) is not int:
        raise DataError(f"{where} is no object with a step: mend or remove that line")
    row = {}
    for name in COLUMNS:
        value = content.get(name)
        if not isinstance(value, int | float | None):
            raise DataError(f"{where}: {name} is {value!r}, not a number: mend or remove that line")
        with suppress(OverflowError):
            row[name] = math.nan if value is None or not math.isfinite(value) else float(value)
    return row


# --- tables ----------------------------------------------------------------------------------------------

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
    if not all(type(size) is int and size > 0 for size in sizes):
        return None
    *window, model_parallel = sizes
    per_rank = math.prod(window)
    before_first = [0.0] if run.columns["step"][0] == 1 else []
    read = np.diff(np.concatenate((before_first, _drawable(run.columns["tokens"]))))
    # A window at the end of an epoch is shorter, and hardly ever a multiple.
    full = read[(read > 0) & (read % per_rank == 0)]
    return float(full[-2:].max() / per_rank * model_parallel) if len(full) else None


def _model_config(run: Run) -> ModelConfig | None:
    with suppress(ConfigError, TypeError, KeyError):
        return ModelConfig(
            vocabulary_size=run.settings["vocabulary_size"],
            embedding_size=run.settings["embedding_size"],
            hidden_size=run.settings["hidden_size"],
            layers=run.settings["layers"],
            tie_embedding=run.settings["tie_embedding"],
        )
    return None


def _model(run: Run) -> str:
    model = _model_config(run)
    if model is None or model.vocabulary_size is None:
        return NOTHING
    layers = "1 layer" if model.layers == 1 else f"{model.layers} layers"
    return f"{model.vocabulary_size:,} → {model.embedding_size:,} → {model.hidden_size:,}, {layers}"


def parameters(run: Run) -> float | None:
    """Trained numbers of the model."""
    model = _model_config(run)
    if model is None or model.vocabulary_size is None:
        return None
    return float(sum(map(math.prod, weight_shapes(model).values())))


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


def incomparable(runs: Sequence[Run]) -> list[str]:
    """Names of the settings, among those that make losses incomparable, in which the runs differ."""
    what = ("vocabulary_size", "data", "validation_data", "validation_share")
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


# --- pictures --------------------------------------------------------------------------------------------

MANY_STEPS = 100
"""From here on a curve is smoothed."""
DRAWN_POINTS = 20_000
"""More steps than that are drawn as means of as many groups: no screen shows more, and matplotlib could not."""
DRAWN_MAGNITUDE = 1e30
"""A larger value is not drawn: the run has diverged, and its picture should show the rest."""

# Okabe & Ito, in an order that keeps neighbours apart; yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Theme:
    """Colours of what is not a curve."""

    background: str
    ink: str
    grid: str


LIGHT = Theme(background="#ffffff", ink="#24292f", grid="#d8dee4")
DARK = Theme(background="#16181d", ink="#d7dae0", grid="#3a3f47")


@dataclass(frozen=True)
class Plot:
    """A picture: which values, over what."""

    name: str
    """Of its file."""
    title: str
    unit: str
    caption: str
    every_step: str | None
    """Column drawn as a line."""
    validation: str | None = None
    """Column drawn with markers: it has values only where there was a validation."""
    over: tuple[str, ...] = ("step",)
    """Columns of the horizontal axes, a panel each."""
    smooth: bool = True
    scale: Literal["linear", "from zero", "log"] = "linear"
    """log: if the values span more than a decade."""

    @property
    def columns(self) -> list[str]:
        return [name for name in (self.every_step, self.validation) if name]

    def has_data(self, runs: Sequence[Run]) -> bool:
        return any(run.has(name) for run in runs for name in self.columns)


PLOTS = (
    Plot(
        "loss",
        "Loss",
        "nats per token",
        "Over the tokens read: which run learns more from the same text. Over the time: which gets there first. "
        "Validation is not counted in the training time.",
        "loss",
        "validation_loss",
        ("tokens", "seconds"),
    ),
    Plot(
        "perplexity",
        "Validation perplexity",
        "perplexity",
        "exp(validation loss), wherever there was a validation.",
        None,
        "perplexity",
        ("tokens", "seconds"),
        scale="log",
    ),
    Plot("throughput", "Throughput", "tokens per second", "All ranks together.", "tokens_per_second", scale="from zero"),
    Plot(
        "gradient_norm",
        "Gradient norm",
        "global norm",
        "Before clipping.",
        "gradient_norm",
        scale="log",
    ),
    Plot(
        "learning_rate",
        "Learning rate",
        "learning rate",
        "What the schedule gave each step.",
        "learning_rate",
        smooth=False,
        scale="from zero",
    ),
    Plot("loss_scale", "Loss scale", "factor", "fp16: from each step on.", "loss_scale", smooth=False, scale="log"),
)


def png(plot: Plot, runs: Sequence[Run], smoothing: int | None, theme: Theme) -> bytes:
    """The picture as a PNG file."""
    from matplotlib import style

    rules = {
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.ink,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "text.parse_math": False,  # a name with $ in it is a name
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
        "font.size": 10,
    }
    content = io.BytesIO()
    # Whatever the user's matplotlibrc says, a report looks the same.
    with style.context(["default", rules]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        draw(plot, runs, smoothing, theme).savefig(content, format="png")
    return content.getvalue()


def draw(plot: Plot, runs: Sequence[Run], smoothing: int | None = None, theme: Theme = LIGHT) -> Figure:
    """The picture as a matplotlib figure: a panel for each horizontal axis, one legend below."""
    from matplotlib.figure import Figure

    handles = _legend(plot, runs, theme)
    legend_columns = columns_that_fit([str(handle.get_label()) for handle in handles])
    rows = -(-len(handles) // legend_columns)
    figure = Figure(figsize=(10, 3.7 + 0.2 * rows), dpi=160, layout="constrained")
    figure.suptitle(plot.title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    panels = figure.subplots(1, len(plot.over), sharey=True, squeeze=False)[0]
    for axes, over in zip(panels, plot.over, strict=True):
        unit = _horizontal_axis(axes, over, runs)
        for index, run in enumerate(runs):
            _curves(axes, plot, run, _drawable(run.columns[over]) / unit, smoothing, theme, index, _width(index, len(runs)))
        if axes.get_xlim()[1] > 0:
            axes.set_xlim(left=0)
        _vertical_axis(axes, plot, runs, over)
    panels[0].set_ylabel(plot.unit)
    figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns)
    return figure


def _colour(run: int) -> str:
    return COLOURS[run % len(COLOURS)]


def _style(run: int) -> Literal["-", "--", "-.", ":"]:
    return STYLES[run // len(COLOURS) % len(STYLES)]


def _width(run: int, runs: int) -> float:
    """Earlier runs are wider, so that equal curves, as of both frameworks, show one upon the other."""
    wider = min(runs, 3) - 1
    return 1.5 + 1.2 * max(0, wider - run) / max(1, wider)


def _legend(plot: Plot, runs: Sequence[Run], theme: Theme) -> list[Line2D]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_colour(index), linestyle=_style(index), linewidth=_width(index, len(runs)), label=shortened(run.name))
        for index, run in enumerate(runs)
        if any(run.has(name) for name in plot.columns)
    ]
    if plot.every_step and plot.validation and any(run.has(plot.validation) for run in runs):
        handles.append(Line2D([], [], color=theme.ink, label="training"))
        handles.append(
            Line2D(
                [],
                [],
                color=theme.ink,
                linewidth=0.8,
                marker="o",
                markersize=4.5,
                markerfacecolor=theme.background,
                label="validation",
            )
        )
    if plot.name == "gradient_norm" and any(np.any(run.columns["skipped"] == 1) for run in runs):
        handles.append(Line2D([], [], color=theme.ink, linestyle="", marker="x", markersize=5, label="skipped step"))
    return handles


def columns_that_fit(labels: Sequence[str]) -> int:
    """Columns for a legend with these labels below a picture."""
    characters, handle = 110, 7  # of a row, and those that a handle takes the space of

    def width(columns: int) -> int:
        return sum(handle + max(map(len, part)) for part in np.array_split(np.array(labels, object), columns))

    return next((columns for columns in range(len(labels), 1, -1) if width(columns) <= characters), 1)


def shortened(name: str, longest: int = 36) -> str:
    """`name` on one line, its middle left out if it is too long for a legend."""
    name = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return name if len(name) <= longest else f"{name[: longest // 3]}…{name[-(longest - longest // 3 - 1) :]}"


def _horizontal_axis(axes: Axes, over: str, runs: Sequence[Run]) -> float:
    """Label the axis; returns what one of its units is worth."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=over != "seconds"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    unit = 1.0
    if over == "tokens":
        axes.set_xlabel("tokens read")
        axes.xaxis.set_major_formatter(EngFormatter())
    elif over == "seconds":
        longest = max((run.last("seconds") or 0.0 for run in runs), default=0.0)
        unit, name = next((u, n) for u, n in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")) if longest >= 2 * u or u == 1)
        axes.set_xlabel(f"training time in {name}")
    else:
        axes.set_xlabel("optimizer step")
    return unit


def _vertical_axis(axes: Axes, plot: Plot, runs: Sequence[Run], over: str) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

    millions = EngFormatter()
    plain = FuncFormatter(lambda value, _: f"{value:,.6g}" if abs(value) < 1e6 else millions(value))
    axes.yaxis.set_major_formatter(plain)
    if plot.scale == "from zero":
        axes.set_ylim(bottom=0)
    placed = [run.columns[name][np.isfinite(_drawable(run.columns[over]))] for run in runs for name in plot.columns]
    values = _drawable(np.concatenate(placed))
    values = values[np.isfinite(values)]
    if plot.scale == "log" and len(values) and 1 / DRAWN_MAGNITUDE < values.min() < values.max() / 10:
        axes.set_yscale("log")
        within_three_decades = values.max() < 1000 * values.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if within_three_decades else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(plain)


def _curves(axes: Axes, plot: Plot, run: Run, x: Values, smoothing: int | None, theme: Theme, index: int, width: float) -> None:
    """The curves of run number `index` in one panel."""
    colour, linestyle = _colour(index), _style(index)
    if plot.every_step and run.has(plot.every_step):
        group = -(-len(x) // DRAWN_POINTS)
        grouped_x, y = group_means(x, group), group_means(_drawable(run.columns[plot.every_step]), group)
        window = smoothing_window(len(x), smoothing) // group if plot.smooth else 1
        marker = "." if np.isfinite(y).sum() <= 2 else None  # a point alone makes no line
        if window > 1:
            axes.plot(grouped_x, y, color=colour, alpha=0.25, linewidth=0.8)
            y = smoothed(y, window)
        axes.plot(grouped_x, y, color=colour, linestyle=linestyle, linewidth=width, marker=marker)
    if plot.validation and run.has(plot.validation):
        y = _drawable(run.columns[plot.validation])
        there = np.isfinite(y)
        axes.plot(
            x[there],
            y[there],
            color=colour,
            linestyle=linestyle,
            linewidth=0.8,
            marker=MARKERS[index % len(MARKERS)],
            markersize=3 + width,
            markerfacecolor=theme.background,
            markevery=-(-int(there.sum()) // 25) or 1,
        )
    if plot.name == "gradient_norm":
        skipped = x[run.columns["skipped"] == 1]
        foot = np.full(len(skipped), 0.03)
        axes.plot(skipped, foot, color=colour, linestyle="", marker="x", markersize=5, transform=axes.get_xaxis_transform())


def _drawable(values: Values) -> Values:
    return np.where(np.abs(values) < DRAWN_MAGNITUDE, values, np.nan)


def smoothing_window(steps: int, smoothing: int | None) -> int:
    """Over how many steps a curve of `steps` is averaged."""
    if smoothing is None:
        return steps // 40 if steps > MANY_STEPS else 1
    return smoothing


def smoothed(values: Values, window: int) -> Values:
    """Centred mean over `window` steps (made odd), over those that there are; NaN stays NaN."""
    there = np.isfinite(values)
    kernel = np.ones(min(window, len(values)) // 2 * 2 + 1)
    # The kernel may be one longer than the values: `full`, cut to their middle.
    half = len(kernel) // 2
    sums = np.convolve(np.where(there, values, 0.0), kernel)[half : half + len(values)]
    counts = np.convolve(there, kernel)[half : half + len(values)]
    return np.where(there, sums / np.maximum(counts, 1.0), np.nan)


def group_means(values: Values, group: int) -> Values:
    """Means of `group` values, one group after the other, over those that there are."""
    if group == 1:
        return values
    padded = np.pad(values, (0, -len(values) % group), constant_values=np.nan).reshape(-1, group)
    counts = np.isfinite(padded).sum(axis=1)
    return np.where(counts > 0, np.nansum(padded, axis=1) / np.maximum(counts, 1), np.nan)


def describe(plot: Plot, runs: Sequence[Run]) -> str:
    """What the picture shows, for those who do not see it."""
    axes = " and ".join(
        {"step": "optimizer steps", "tokens": "tokens read", "seconds": "training time"}[over] for over in plot.over
    )
    parts = []
    for run in runs:
        ends = []
        for name in plot.columns:
            values = run.columns[name][np.isfinite(run.columns[name])]
            if len(values):
                kind = "validation " if name == plot.validation and plot.every_step else ""
                ends.append(f"{kind}from {values[0]:,.4g} to {values[-1]:,.4g}")
        parts.append(f"{run.name}: {', '.join(ends) or 'no values'}")
    return f"{plot.title} ({plot.unit}) over {axes}. {'; '.join(parts)}."


# --- page ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture in the page."""

    title: str
    caption: str
    description: str
    light: str
    dark: str
    """Both as data URIs: the reader's settings choose."""


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def smoothing_note(runs: Sequence[Run], smoothing: int | None) -> str:
    """How to read pale and strong curves; empty if there are none."""
    windows = sorted({window for run in runs if (window := smoothing_window(len(run.columns["step"]), smoothing)) > 1})
    if not windows:
        return ""
    steps = f"{windows[0]:,}" if len(windows) == 1 else f"{windows[0]:,} to {windows[-1]:,}"
    return f"Pale curves: every step. Strong ones: the mean of the {steps} steps around each."


def page(runs: Sequence[Run], pictures: Sequence[Picture], smoothing: int | None = None) -> str:
    """The page as HTML; whatever comes from a file is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hvd_lm", "."),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        runs=runs,
        names=[shortened(run.name) for run in runs],
        colours=[_colour(index) for index in range(len(runs))],
        styles=[{"-": "solid", "--": "dashed", "-.": "dashed", ":": "dotted"}[_style(index)] for index in range(len(runs))],
        summary=summary(runs),
        incomparable=incomparable(runs),
        differences=differences(runs),
        settings=all_settings(runs),
        pictures=pictures,
        smoothing_note=smoothing_note(runs, smoothing),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    """Each file is the old one or the new one, never a part. Pictures of an earlier report that this one lacks go."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for plot in PLOTS:
            if f"{plot.name}.png" not in files:
                (out / f"{plot.name}.png").unlink(missing_ok=True)
        for name, content in files.items():
            partial = out / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(out / name)
    except OSError as error:
        raise ConfigError(f"cannot write to --out {out}: {error.strerror or error}") from error
