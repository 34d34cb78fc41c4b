"""Pictures of a report: which there are, how they are drawn, as PNG files or matplotlib figures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from hvd_lm.report.runs import DRAWN_MAGNITUDE, SENT, Run, Values, drawable
from hvd_lm.report.smoothing import group_means, smoothed, smoothing_window

if TYPE_CHECKING:
    # A training should not pay for the import of matplotlib.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DRAWN_POINTS = 20_000
"""More steps than that are drawn as means of as many groups: no screen shows more, and matplotlib could not."""

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
"""Of the PNG files, and of the page unless its reader prefers dark."""
DARK = Theme(background="#16181d", ink="#d7dae0", grid="#3a3f47")
"""Of the page for a reader who prefers dark."""


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
    predicted: str | None = None
    """Column drawn as a dotted line beside `every_step`: what that was predicted to be."""

    @property
    def columns(self) -> list[str]:
        return [name for name in (self.every_step, self.validation, self.predicted) if name]

    def shows(self, run: Run) -> bool:
        """Whether the run has a value to draw."""
        return any(run.has(name) for name in self.columns) and any(run.has(name) for name in self.over)

    def has_data(self, runs: Sequence[Run]) -> bool:
        """Whether any of the runs has a value to draw."""
        return any(map(self.shows, runs))


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
        "loss_by_bytes",
        "Loss by what was sent",
        "nats per token",
        "Over the bytes of gradients that a rank gives to Horovod: which run learns more from the same traffic.",
        "loss",
        "validation_loss",
        (SENT,),
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
        "step_time",
        "Time of a step",
        "seconds per step",
        "Of runs with --link, beside what the measured link and compute predict.",
        "step_seconds",
        predicted="predicted_seconds",
        scale="from zero",
    ),
    Plot(
        "communication",
        "Waits for gradients",
        "seconds per step",
        "After its backward, of the rank that waited longest: for the link, or, where another rank hardly waits, for that one.",
        "communication_seconds_most",
        predicted="predicted_communication_seconds",
        scale="from zero",
    ),
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
"""Every picture of a report, in the order of the page."""


def png(plot: Plot, runs: Sequence[Run], smoothing: int | None, theme: Theme) -> bytes:
    """The picture as a PNG file."""
    return png_of(lambda: draw(plot, runs, smoothing, theme), theme)


def png_of(draw_it: Callable[[], Figure], theme: Theme) -> bytes:
    """The PNG file of a figure that is drawn in the style of all of them, whatever the user's matplotlibrc says."""
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
    with style.context(["default", rules]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        draw_it().savefig(content, format="png")
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
            if plot.shows(run):
                _curves(axes, plot, run, drawable(run.columns[over]) / unit, smoothing, theme, index, _width(index, len(runs)))
        if axes.get_xlim()[1] > 0 and over != SENT:
            axes.set_xlim(left=0)
        _vertical_axis(axes, plot, runs, over)
    panels[0].set_ylabel(plot.unit)
    figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns)
    return figure


def colour_of(run: int) -> str:
    """Colour of run number `run` in every picture and table."""
    return COLOURS[run % len(COLOURS)]


def line_style_of(run: int) -> Literal["-", "--", "-.", ":"]:
    """Line style of run number `run`: another one when the colours begin anew."""
    return STYLES[run // len(COLOURS) % len(STYLES)]


def _width(run: int, runs: int) -> float:
    """Earlier runs are wider, so that equal curves, as of both frameworks, show one upon the other."""
    wider = min(runs, 3) - 1
    return 1.5 + 1.2 * max(0, wider - run) / max(1, wider)


def _legend(plot: Plot, runs: Sequence[Run], theme: Theme) -> list[Line2D]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=colour_of(index),
            linestyle=line_style_of(index),
            linewidth=_width(index, len(runs)),
            label=shortened(run.name),
        )
        for index, run in enumerate(runs)
        if plot.shows(run)
    ]
    if plot.every_step and plot.validation and any(plot.shows(run) and run.has(plot.validation) for run in runs):
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
    if plot.predicted and any(run.has(plot.predicted) for run in runs):
        handles.append(Line2D([], [], color=theme.ink, linestyle=":", marker="x", markersize=4, linewidth=1.2, label="predicted"))
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
    if over == SENT:
        # Compression changes it by orders of magnitude.
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter("B"))
        axes.set_xlabel("bytes of gradients sent by a rank")
    elif over == "tokens":
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
    placed = [run.columns[name][np.isfinite(drawable(run.columns[over]))] for run in runs for name in plot.columns]
    values = drawable(np.concatenate(placed))
    values = values[np.isfinite(values)]
    if plot.scale == "log" and len(values) and 1 / DRAWN_MAGNITUDE < values.min() < values.max() / 10:
        axes.set_yscale("log")
        within_three_decades = values.max() < 1000 * values.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if within_three_decades else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(plain)


def _curves(axes: Axes, plot: Plot, run: Run, x: Values, smoothing: int | None, theme: Theme, index: int, width: float) -> None:
    """The curves of run number `index` in one panel."""
    colour, linestyle = colour_of(index), line_style_of(index)
    if plot.every_step and run.has(plot.every_step):
        group = -(-len(x) // DRAWN_POINTS)
        grouped_x, y = group_means(x, group), group_means(drawable(run.columns[plot.every_step]), group)
        window = smoothing_window(len(x), smoothing) // group if plot.smooth else 1
        marker = "." if np.isfinite(y).sum() <= 2 else None  # a point alone makes no line
        if window > 1:
            axes.plot(grouped_x, y, color=colour, alpha=0.25, linewidth=0.8)
            y = smoothed(y, window)
        axes.plot(grouped_x, y, color=colour, linestyle=linestyle, linewidth=width, marker=marker)
    if plot.predicted and run.has(plot.predicted):
        grouped_x, y = (group_means(values, -(-len(x) // DRAWN_POINTS)) for values in (x, drawable(run.columns[plot.predicted])))
        axes.plot(grouped_x, y, color=colour, linestyle=":", linewidth=1.2, marker="x", markersize=4, markevery=-(-len(y) // 12))
    if plot.validation and run.has(plot.validation):
        y = drawable(run.columns[plot.validation])
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


def describe(plot: Plot, runs: Sequence[Run]) -> str:
    """What the picture shows, for those who do not see it."""
    axes = " and ".join(
        {"step": "optimizer steps", "tokens": "tokens read", "seconds": "training time", SENT: "bytes sent"}[over]
        for over in plot.over
    )
    parts = []
    for run in runs:
        ends = []
        for name in plot.columns if plot.shows(run) else ():
            values = run.columns[name][np.isfinite(run.columns[name])]
            if len(values):
                kind = "predicted " if name == plot.predicted else ""
                kind = "validation " if name == plot.validation and plot.every_step else kind
                ends.append(f"{kind}from {values[0]:,.4g} to {values[-1]:,.4g}")
        parts.append(f"{run.name}: {', '.join(ends) or 'no values'}")
    return f"{plot.title} ({plot.unit}) over {axes}. {'; '.join(parts)}."
