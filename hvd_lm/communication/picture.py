"""A picture of a link: what was measured, and what was fitted to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hvd_lm.communication.link import Link
from hvd_lm.communication.ring import course
from hvd_lm.report.plots import COLOURS, LIGHT, MARKERS, Theme, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def png(link: Link) -> bytes:
    """The picture as a PNG file."""
    return png_of(lambda: draw(link), LIGHT)


def draw(link: Link, theme: Theme = LIGHT) -> Figure:
    """The picture as a matplotlib figure, a panel for each number format: marks were measured, lines are fits."""
    from matplotlib.figure import Figure

    formats = list(dict.fromkeys(its.number_format for its in link.collectives))
    figure = Figure(figsize=(10, 4.6), dpi=160, layout="constrained")
    title = f"{link.ranks} ranks on {link.hosts} host(s), {link.framework} over {link.controller}"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    panels = figure.subplots(1, len(formats), sharey=True, squeeze=False)[0]
    for axes, number_format in zip(panels, formats, strict=True):
        _panel(axes, link, number_format, theme)
    panels[0].set_ylabel("time until all ranks have it, milliseconds")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _panel(axes: Axes, link: Link, number_format: str, theme: Theme) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter

    axes.set_title(number_format, fontsize=10)
    axes.set_xscale("log", base=4)
    axes.set_yscale("log")
    axes.set_xlabel("size of the operation, bytes")
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    for index, its in enumerate(one for one in link.collectives if one.number_format == number_format):
        points = [point for point in its.points if point.count == 1]
        if not points:
            continue
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        sizes = np.array([point.size for point in points], float)
        seconds, least, most = np.array([(p.seconds, p.fastest, p.slowest) for p in points]).T
        spread = 1e3 * np.stack((seconds - least, most - seconds))
        axes.errorbar(
            sizes, 1e3 * seconds, spread, color=colour, marker=marker, markersize=5, linestyle="", linewidth=0.8,
            markerfacecolor=theme.background, label=its.name,
        )  # fmt: skip
        steps, volume = course(its.name, link.ranks)  # type: ignore[arg-type]
        dense = np.geomspace(sizes.min(), sizes.max(), 100)
        fit = link.negotiation_seconds + steps * its.alpha + volume * dense * its.beta
        axes.plot(dense, 1e3 * fit, color=colour, linewidth=1.2, label=f"{its.name}, fit")
