"""A picture of a link: what was measured, and what was fitted to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hvd_lm.communication.link import Collective, Link
from hvd_lm.communication.ring import course
from hvd_lm.report.plots import COLOURS, LIGHT, MARKERS, Theme, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def png(link: Link) -> bytes:
    """The picture as a PNG file."""
    return png_of(lambda: draw(link), LIGHT)


def draw(link: Link, theme: Theme = LIGHT) -> Figure:
    """The picture as a matplotlib figure, a panel for each number format: marks were measured, lines are fits."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    formats = list(dict.fromkeys(its.number_format for its in link.collectives))
    names = list(dict.fromkeys(its.name for its in link.collectives))
    figure = Figure(figsize=(10, 4.6), dpi=160, layout="constrained")
    title = f"{link.ranks} ranks on {link.hosts} host(s), {link.framework} over {link.controller}: marks measured, lines fitted"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    panels = figure.subplots(1, len(formats), sharey=True, squeeze=False)[0]
    for axes, number_format in zip(panels, formats, strict=True):
        _axes(axes, number_format)
        for its in link.collectives:
            if its.number_format == number_format:
                _curve(axes, link, its, names.index(its.name), theme)
    panels[0].set_ylabel("time until all ranks have it, milliseconds")
    handles = [Line2D([], [], label=name, linewidth=1.2, **_look(index, theme)) for index, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names))
    return figure


def _look(index: int, theme: Theme) -> dict[str, Any]:
    """Mark and line of collective number `index`, told apart without colour."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": _STYLES[index % len(_STYLES)],
        "markersize": 5,
        "markerfacecolor": theme.background,
    }


def _axes(axes: Axes, number_format: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_title(number_format, fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("size of the operation, bytes")
    axes.xaxis.set_major_locator(LogLocator(base=16))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _bytes(size)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _bytes(size: float) -> str:
    return f"{size:,.4g}" if size < 2**10 else f"{size / 2**10:,.4g} KiB" if size < 2**20 else f"{size / 2**20:,.4g} MiB"


def _curve(axes: Axes, link: Link, its: Collective, index: int, theme: Theme) -> None:
    """From the fastest to the slowest of the repeats, a mark at what the fit is of, and the fit."""
    points = [point for point in its.points if point.count == 1]
    if not points:
        return
    look = _look(index, theme)
    sizes = np.array([point.size for point in points], float)
    seconds, least, most = np.array([(p.seconds, p.fastest, p.slowest) for p in points]).T
    spread = 1e3 * np.stack((seconds - least, most - seconds))
    axes.errorbar(sizes, 1e3 * seconds, spread, **{**look, "linestyle": ""}, linewidth=0.8)
    steps, volume = course(its.name, link.ranks)  # type: ignore[arg-type]
    dense = np.geomspace(sizes.min(), sizes.max(), 100)
    fit = link.negotiation_seconds + steps * its.alpha + volume * dense * its.beta
    axes.plot(dense, 1e3 * fit, color=look["color"], linestyle=look["linestyle"], linewidth=1.2)
