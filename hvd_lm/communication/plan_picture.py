"""A picture of a plan: step time and scaling efficiency over the ranks, a curve for each way to send, with its band; what a step of
the way that is picked is made of; and how that way scales on other links."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hvd_lm.communication.planned import COMPRESSIONS, Plan, Setting
from hvd_lm.report.plots import COLOURS, LIGHT, MARKERS, STYLES, Theme, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DECADE = 10.0
PARTS = {
    "forward and backward": ("forward_seconds", "backward_seconds", "contention_seconds"),
    "update": ("update_seconds",),
    "compression": ("compression_seconds",),
    "communication": ("exposed_seconds", "averaging_seconds"),
}
"""Of a step, in its order; communication is what nothing hides."""
_HATCHES = ("", "..", "xx", "//")


def png(found: Plan) -> bytes:
    """The picture as a PNG file."""
    return png_of(lambda: draw(found), LIGHT)


def draw(found: Plan, theme: Theme = LIGHT) -> Figure:
    """The picture as a matplotlib figure. A cross is on settings that are not near the target, a ring around the pick."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    rows, columns, size = (2, 2, (10, 8.8)) if found.other_links else (1, 3, (14, 4.8))
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    title = (
        f"Steps of about {found.target_batch:,} tokens, predicted from a link that was measured with {found.measured_ranks} ranks"
    )
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    of_time, of_efficiency, of_parts, *of_links = figure.subplots(rows, columns).flat
    ways = {its.way for its in found.settings}
    # A way that is not there keeps its look.
    looks = {way: _look(place, theme) for place, way in enumerate((*COMPRESSIONS, *sorted(ways - {*COMPRESSIONS}))) if way in ways}
    for way, look in looks.items():
        its = sorted((one for one in found.settings if one.way == way), key=lambda one: one.ranks)
        _curve(of_time, look, its, ("step_seconds", "step_seconds_low", "step_seconds_high"), 1.0, theme)
        efficiency = ("scaling_efficiency", "scaling_efficiency_low", "scaling_efficiency_high")
        _curve(of_efficiency, look, its, efficiency, 100.0, theme)
    _axes(of_time, [its.ranks for its in found.settings], "time of an optimizer step, seconds")
    _axes(of_efficiency, [its.ranks for its in found.settings], "scaling efficiency, per cent")
    of_all = [seconds for its in found.settings for seconds in (its.step_seconds_low, its.step_seconds_high)]
    if max(of_all) > _DECADE * min(of_all):
        of_time.set_yscale("log")
        of_time.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        of_time.yaxis.set_minor_locator(NullLocator())
        of_time.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:,.6g}"))
    else:
        of_time.set_ylim(bottom=0)
    of_efficiency.set_ylim(0, 105)
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 14,
        "markerfacecolor": "none",
        "color": theme.ink,
        "linestyle": "",
        "clip_on": False,
    }
    of_time.plot([found.pick.ranks], [found.pick.step_seconds], **ring)
    of_efficiency.plot([found.pick.ranks], [100 * found.pick.scaling_efficiency], **ring)
    handles = [Line2D([], [], label=way, linewidth=1.5, **look) for way, look in looks.items()]
    handles.append(Line2D([], [], label="band: as far as the fits are off", color=theme.ink, linewidth=0.7))
    handles.append(Line2D([], [], label="the pick", **{**ring, "markersize": 10}))
    if any(not its.is_near_target for its in found.settings):
        off = {**ring, "marker": "x", "markersize": 7}
        handles.append(Line2D([], [], label="global batch more than twice off", **off))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    _parts(of_parts, found, theme)
    for axes in of_links:
        _links(axes, found, theme)
    return figure


def _parts(axes: Axes, found: Plan, theme: Theme) -> None:
    """A bar for each number of ranks, told apart without colour."""
    way = found.pick.way
    its = sorted((one for one in found.settings if one.way == way or one.ranks == 1), key=lambda one: one.ranks)
    begin = [0.0] * len(its)
    for place, (part, fields) in enumerate(PARTS.items()):
        shares = [100 * sum(getattr(one, field) for field in fields) / one.step_seconds for one in its]
        look: dict[str, Any] = {
            "facecolor": COLOURS[place],
            "hatch": _HATCHES[place],
            "edgecolor": theme.background,
            "linewidth": 0.5,
        }
        axes.bar([f"{one.ranks:,}" for one in its], shares, 0.7, begin, label=part, **look)
        begin = [before + share for before, share in zip(begin, shares, strict=True)]
    axes.set_xlabel("ranks")
    axes.set_ylabel(f"share of a step of {way}, per cent")
    axes.set_ylim(0, 100)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)


def _links(axes: Axes, found: Plan, theme: Theme) -> None:
    """The way of the pick on all links."""
    way = found.pick.way
    of_all = {"--link": [one for one in found.settings if one.way == way or one.ranks == 1], **found.other_links}
    for place, (name, settings) in enumerate(of_all.items()):
        its = sorted(settings, key=lambda one: one.ranks)
        look = _look(place % len(COLOURS), theme)
        axes.plot([one.ranks for one in its], [100 * one.scaling_efficiency for one in its], label=name, linewidth=1.5, **look)
    _axes(axes, [one.ranks for settings in of_all.values() for one in settings], f"scaling efficiency of {way}, per cent")
    axes.set_ylim(0, 105)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)


def _look(place: int, theme: Theme) -> dict[str, Any]:
    """Mark and line, told apart without colour."""
    return {
        "color": COLOURS[place],
        "marker": MARKERS[place],
        "linestyle": STYLES[place % len(STYLES)],
        "markersize": 6,
        "markerfacecolor": theme.background,
    }


def _axes(axes: Axes, ranks: list[int], label: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xlabel("ranks")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(ranks))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))


def _curve(axes: Axes, look: dict[str, Any], its: list[Setting], fields: tuple[str, str, str], unit: float, theme: Theme) -> None:
    ranks = [one.ranks for one in its]
    value, low, high = ([unit * getattr(one, field) for one in its] for field in fields)
    axes.fill_between(ranks, low, high, facecolor=look["color"], alpha=0.12, linewidth=0)
    for border in (low, high):
        axes.plot(ranks, border, color=look["color"], linestyle=look["linestyle"], linewidth=0.7, alpha=0.8)
    axes.plot(ranks, value, linewidth=1.5, **look)
    off = [place for place, one in enumerate(its) if not one.is_near_target]
    axes.plot([ranks[place] for place in off], [value[place] for place in off], "x", color=theme.ink, markersize=7)
