"""Learning curves of training runs, compared: pictures, and one HTML page that needs nothing beside it.

Reads what rank 0 wrote of a run, ``metrics.jsonl`` and ``config.yaml``, while it trains or afterwards. Needs no framework.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tyro

from hvd_lm.errors import ConfigError, require, why
from hvd_lm.paths import make_paths
from hvd_lm.report.plots import DARK, LIGHT, PLOTS, colour_of, describe, line_style_of, png, shortened
from hvd_lm.report.runs import Run, read_runs
from hvd_lm.report.smoothing import smoothing_window
from hvd_lm.report.tables import all_settings, differences, incomparable, summary


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
        loader=jinja2.PackageLoader("hvd_lm.report", "."),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        runs=runs,
        names=[shortened(run.name) for run in runs],
        colours=[colour_of(index) for index in range(len(runs))],
        styles=[{"-": "solid", "--": "dashed", "-.": "dashed", ":": "dotted"}[line_style_of(index)] for index in range(len(runs))],
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
        raise ConfigError(f"cannot write to --out {out}: {why(error, out)}") from error
