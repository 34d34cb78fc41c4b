"""hvd-lm report: the pictures show the metrics, the page needs nothing beside it, and what it says is true."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.image import imread
from matplotlib.lines import Line2D

from hvd_lm.config import CommunicationConfig, DataConfig, ModelConfig, OptimizerConfig, RunConfig
from hvd_lm.errors import ConfigError, DataError
from hvd_lm.report import page as report_page
from hvd_lm.report import plots as report_plots
from hvd_lm.report import runs as report_runs
from hvd_lm.report import smoothing as report_smoothing
from hvd_lm.report import tables as report_tables
from hvd_lm.report.page import ReportConfig, report
from hvd_lm.report.plots import PLOTS, draw
from hvd_lm.report.runs import COLUMNS, Run, read_rows, read_runs
from hvd_lm.settings_file import write_yaml

Row = dict[str, Any]
TOKENS = 2 * 8 * 32 * 10
"""Targets of a full window on two ranks with the default settings."""


def row(step: int, **more: Any) -> Row:
    """A row as the training loop writes it."""
    return {
        "step": step,
        "epoch": 1,
        "loss": 4 + 5 / step,
        "tokens": TOKENS * step,
        "tokens_per_second": 1000.0 + step,
        "learning_rate": 1e-3 * step,
        "gradient_norm": 20 / step,
        "seconds": 5.0 * step,
        **more,
    }


ROWS = [
    row(step, **({"validation_loss": 5 - step / 9, "perplexity": math.exp(5 - step / 9)} if step % 3 == 0 else {}))
    for step in range(1, 10)
]


def write(folder: Path, rows: list[Row] | str = ROWS, **config: Any) -> Path:
    """A run in `folder`, as training leaves it."""
    folder.mkdir(parents=True)
    content = rows if isinstance(rows, str) else "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "metrics.jsonl").write_text(content, encoding="utf-8")
    write_yaml(RunConfig(**{"out": folder, "model": ModelConfig(vocabulary_size=2000), **config}), folder / "config.yaml")
    return folder


def run(tmp_path: Path, rows: list[Row] | str = ROWS, **config: Any) -> Run:
    return read_runs([write(tmp_path / "run", rows, **config)])[0]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the words and files of a report: a picture takes a tenth of a second, and holds its name instead."""
    monkeypatch.setattr(report_page, "png", lambda plot, *_: plot.name.encode())


def plot(name: str) -> report_plots.Plot:
    return next(one for one in PLOTS if one.name == name)


def curves(axes: Axes) -> list[Line2D]:
    """What is drawn in a panel, without empty lines."""
    return [line for line in axes.get_lines() if len(np.asarray(line.get_xdata()))]


def data(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def column(name: str, rows: list[Row] = ROWS) -> list[float]:
    return [one[name] for one in rows if one.get(name) is not None]


class Page(HTMLParser):
    """Tags with their attributes, the cells of every table, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[dict[str, list[str]]] = []
        self.text = ""
        self._open: list[str] = []
        self._cells: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source", "br"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append({})
        elif tag == "tr":
            self._cells = []
        elif tag in ("td", "th"):
            self._cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "tr":
            self.tables[-1][self._cells[0]] = self._cells[1:]

    def handle_data(self, text: str) -> None:
        if {"td", "th"} & set(self._open):
            self._cells[-1] += text
        if "style" not in self._open:
            self.text += text


# --- pictures show the metrics ---------------------------------------------------------------------------


@pytest.mark.parametrize(("panel", "over"), [(0, "tokens"), (1, "seconds")])
def test_loss_and_validation_loss_over_tokens_and_time(panel: int, over: str, tmp_path: Path) -> None:
    training, validation = curves(draw(plot("loss"), [run(tmp_path)]).axes[panel])
    assert data(training) == (column(over), column("loss"))
    assert data(validation) == (column(over)[2::3], column("validation_loss"))
    assert training.get_marker() == "None"
    assert validation.get_marker() == "o"


@pytest.mark.parametrize(
    ("name", "of"),
    [("throughput", "tokens_per_second"), ("gradient_norm", "gradient_norm"), ("learning_rate", "learning_rate")],
)
def test_values_over_steps(name: str, of: str, tmp_path: Path) -> None:
    (curve,) = curves(draw(plot(name), [run(tmp_path)]).axes[0])
    assert data(curve) == (column("step"), column(of))


def test_every_run_has_its_colour_and_place_in_the_legend(tmp_path: Path) -> None:
    """Runs of different lengths; more than there are colours."""
    runs = read_runs([write(tmp_path / f"run-{n}", ROWS[: n + 1]) for n in range(9)])
    figure = draw(plot("throughput"), runs)
    lines = curves(figure.axes[0])
    assert [data(line)[1] for line in lines] == [column("tokens_per_second", ROWS[: n + 1]) for n in range(9)]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [f"run-{n}" for n in range(9)]
    looks = [(line.get_color(), line.get_linestyle()) for line in lines]
    assert len(set(looks)) == 9
    assert looks == [(handle.get_color(), handle.get_linestyle()) for handle in legend.get_lines()]
    assert lines[0].get_marker() == ".", "a run of one step shows as a point"


def test_equal_curves_show_one_upon_the_other(tmp_path: Path) -> None:
    """As the same seed gives in both frameworks."""
    runs = (write(tmp_path / "a"), write(tmp_path / "b"))
    assert [line.get_linewidth() for line in curves(draw(plot("throughput"), read_runs(runs)).axes[0])] == [2.7, 1.5]
    picture = imread(report(ReportConfig(runs, tmp_path / "out")).with_name("throughput.png"))
    bluish = picture[:, :, 2] - picture[:, :, 0] > 0.2
    assert bluish.sum() > 2000, "the rim of the blue curve below the other"


def test_loss_over_what_was_sent(tmp_path: Path) -> None:
    """A run that sends nothing, and one of before it was counted, have no place there."""
    sent = [row(step, bytes_sent=1000) for step in range(1, 4)]
    folders = [write(tmp_path / name, rows) for name, rows in (("a", sent), ("alone", [row(1, bytes_sent=0)]), ("old", ROWS))]
    figure = draw(plot("loss_by_bytes"), read_runs(folders))
    (axes,) = figure.axes
    (line,) = curves(axes)
    assert data(line) == ([1000, 2000, 3000], column("loss", sent))
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]


@pytest.mark.parametrize(
    ("longest", "unit", "label"),
    [(100, 1, "training time in seconds"), (1200, 60, "training time in minutes"), (7200, 3600, "training time in hours")],
)
def test_unit_of_the_time_fits_the_longest_run(longest: float, unit: float, label: str, tmp_path: Path) -> None:
    runs = read_runs([write(tmp_path / "a", [row(1, seconds=3.0)]), write(tmp_path / "b", [row(1, seconds=longest)])])
    axes = draw(plot("loss"), runs).axes[1]
    assert axes.get_xlabel() == label
    assert [data(line)[0] for line in curves(axes)] == [[3.0 / unit], [longest / unit]]


@pytest.mark.parametrize(("perplexities", "scale"), [((300.0, 31.0), "linear"), ((300.0, 29.0), "log"), ((300.0, 0.0), "linear")])
def test_log_axis_beyond_a_decade(perplexities: tuple[float, float], scale: str, tmp_path: Path) -> None:
    rows = [row(step, perplexity=value) for step, value in enumerate(perplexities, 1)]
    axes = draw(plot("perplexity"), [run(tmp_path, rows)]).axes[0]
    assert axes.get_yscale() == scale
    assert data(curves(axes)[0])[1] == list(perplexities)


@pytest.mark.parametrize("missing", ["tokens", "seconds"])
def test_values_without_a_place_on_an_axis(missing: str, tmp_path: Path) -> None:
    rows = [row(step, perplexity=10.0**step, **{missing: None}) for step in (1, 2, 3)]
    figure = draw(plot("perplexity"), [run(tmp_path, rows)])
    figure.savefig(io.BytesIO())
    assert [len(curves(axes)) and np.isfinite(data(curves(axes)[0])[0]).sum() for axes in figure.axes] == (
        [0, 3] if missing == "tokens" else [3, 0]
    )


def test_many_steps_are_pale_with_their_mean_strong(tmp_path: Path) -> None:
    noisy = [row(step, loss=5.0 + (-1) ** step) for step in range(1, 401)]
    pale, strong = curves(draw(plot("loss"), [run(tmp_path, noisy)]).axes[0])
    assert data(pale)[1] == column("loss", noisy)
    assert pale.get_alpha() == 0.25
    assert strong.get_alpha() is None
    assert np.abs(np.asarray(strong.get_ydata())[10:-10] - 5).max() < 0.1


def test_smoothing_flag(tmp_path: Path) -> None:
    one = run(tmp_path)
    assert len(curves(draw(plot("loss"), [one], smoothing=1).axes[0])) == 2
    pale, strong, _ = curves(draw(plot("loss"), [one], smoothing=3).axes[0])
    losses = column("loss")
    assert data(pale)[1] == losses
    assert data(strong)[1][4] == pytest.approx(sum(losses[3:6]) / 3)
    assert data(strong)[1][0] == pytest.approx(sum(losses[:2]) / 2)
    (rate,) = curves(draw(plot("learning_rate"), [one], smoothing=3).axes[0])
    assert data(rate)[1] == column("learning_rate"), "a schedule is no noise"


@given(
    values=st.lists(st.one_of(st.just(math.nan), st.floats(-1e6, 1e6)), min_size=1, max_size=30),
    window=st.integers(1, 40),
)
def test_smoothed_is_the_mean_of_what_is_around(values: list[float], window: int) -> None:
    half = min(window, len(values)) // 2
    for index, mean in enumerate(report_smoothing.smoothed(np.array(values), window)):
        around = [value for value in values[max(0, index - half) : index + half + 1] if math.isfinite(value)]
        if math.isnan(values[index]):
            assert math.isnan(mean)
        else:
            assert mean == pytest.approx(sum(around) / len(around), rel=1e-9, abs=1e-6)


@given(values=st.lists(st.one_of(st.just(math.nan), st.floats(-1e6, 1e6)), min_size=1, max_size=30), group=st.integers(1, 9))
def test_group_means(values: list[float], group: int) -> None:
    means = report_smoothing.group_means(np.array(values), group)
    for index, mean in enumerate(means):
        there = [value for value in values[index * group : (index + 1) * group] if math.isfinite(value)]
        assert math.isnan(mean) if not there else mean == pytest.approx(sum(there) / len(there), abs=1e-6)
    assert len(means) == math.ceil(len(values) / group)


def test_a_very_long_run_is_drawn_as_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_plots, "DRAWN_POINTS", 3)
    (curve,) = curves(draw(plot("throughput"), [run(tmp_path)]).axes[0])
    assert data(curve) == ([2.0, 5.0, 8.0], [1002.0, 1005.0, 1008.0])


def test_skipped_steps_are_gaps_with_crosses(tmp_path: Path) -> None:
    rows = [row(step, skipped=step == 3, skipped_steps=int(step >= 3), loss_scale=8.0) for step in range(1, 6)]
    rows[2]["gradient_norm"] = None
    figure = draw(plot("gradient_norm"), [run(tmp_path, rows)])
    norms, crosses = curves(figure.axes[0])
    assert np.isnan(data(norms)[1][2])
    assert data(norms)[1][3] == rows[3]["gradient_norm"]
    assert data(crosses)[0] == [3.0]
    assert crosses.get_marker() == "x"
    assert "skipped step" in [text.get_text() for text in figure.legends[0].get_texts()]


def pixels_near(picture: Any, colour: str) -> int:
    rgb = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    return int((np.abs(picture[:, :, :3] - rgb).max(axis=2) < 0.02).sum())


def test_predictions_are_drawn_beside_what_was_measured(tmp_path: Path) -> None:
    """Told apart without colour; steps of which nothing was predicted are not drawn."""
    rows = [{**one, "communication_seconds_most": 0.5 * one["step"], "predicted_communication_seconds": 0.25} for one in ROWS]
    waits, expected = curves(draw(plot("communication"), [run(tmp_path, rows)]).axes[0])
    assert data(waits) == (column("step"), [0.5 * step for step in range(1, 10)])
    assert data(expected) == (column("step"), [0.25] * 9)
    assert (waits.get_linestyle(), expected.get_linestyle(), expected.get_marker()) == ("-", ":", "x")
    figure = draw(plot("communication"), [run(tmp_path / "again", rows)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["run", "predicted"]
    late = [{**one, **({"predicted_seconds": 4.0} if one["step"] > 5 else {})} for one in ROWS]
    took, _ = curves(draw(plot("step_time"), [run(tmp_path / "late", late)]).axes[0])
    assert np.asarray(took.get_ydata())[5:].tolist() == [5.0] * 4
    assert np.isnan(np.asarray(took.get_ydata())[:5]).all()
    assert not plot("step_time").has_data([run(tmp_path / "without")])


def test_png_files_hold_the_curves(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a"), write(tmp_path / "b", [{**one, "loss": one["loss"] + 1} for one in ROWS])]
    out = report(ReportConfig(tuple(runs), tmp_path / "out")).parent
    assert sorted(path.name for path in out.iterdir()) == [
        "gradient_norm.png", "index.html", "learning_rate.png", "loss.png", "perplexity.png", "throughput.png",
    ]  # fmt: skip
    for path in out.glob("*.png"):
        picture = imread(path)
        assert picture.shape[1] == 1600
        assert 500 < picture.shape[0] < 900
        # The second run covers the first where they are the same.
        assert pixels_near(picture, report_plots.COLOURS[1]) > 1000, path.name
        assert pixels_near(picture, report_plots.COLOURS[0]) > (1000 if path.name == "loss.png" else 100), path.name
        assert pixels_near(picture, report_plots.COLOURS[2]) == 0


# --- the page --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_summary_and_differing_settings(tmp_path: Path) -> None:
    waits = {"communication_seconds_least": 0.5, "communication_seconds_most": 2.0}
    fp16 = [{**one, **waits, "skipped": False, "skipped_steps": 2, "loss_scale": 1.0} for one in ROWS[:7]]
    first = write(tmp_path / "first", steps=9)
    second = write(
        tmp_path / "second", fp16, steps=4000, framework="tensorflow", optimizer=OptimizerConfig(learning_rate=0.004),
        communication=CommunicationConfig(compression="fp16"), data=DataConfig(batch_size=16),
    )  # fmt: skip
    page = Page(report(ReportConfig((first, second), tmp_path / "out")))
    summary, differences, everything = page.tables
    assert summary == {
        "run": ["first", "second"],
        "framework": ["torch", "tensorflow"],
        "ranks": ["2", "1"],
        "model": ["2,000 → 300 → 1,024, 2 layers"] * 2,
        "parameters": ["16,469,904"] * 2,
        "steps": ["9", "7 of 4,000"],
        "tokens read": ["46,080", "35,840"],
        "loss of the last step": ["4.5556", "4.7143"],
        "best validation loss": ["4.0000", "4.3333"],
        "perplexity there": ["54.60", "76.20"],
        "reached at step": ["9", "6"],
        "tokens per second, median": ["1,005", "1,004"],
        "waits for gradients, least of all ranks": [report_tables.NOTHING, "10% of a step"],
        "waits for gradients, most of all ranks": [report_tables.NOTHING, "40% of a step"],
        "skipped steps": [report_tables.NOTHING, "2"],
        "training time": ["45.0 s", "35.0 s"],
    }
    assert differences == {
        "setting": ["first", "second"],
        "framework": ["torch", "tensorflow"],
        "steps": ["9", "4000"],
        "batch_size": ["8", "16"],
        "learning_rate": ["0.001", "0.004"],
        "compression": ["none", "fp16"],
    }
    assert everything["hidden_size"] == ["1024", "1024"]
    assert everything["tie_embedding"] == ["no", "no"]
    assert everything["clip"] == ["1.0", "1.0"]
    assert everything["data"] == ["none", "none"]
    assert "do not compare" not in page.text


def test_parameters_are_those_of_the_model(tmp_path: Path) -> None:
    """V E + 4 H (E + H + 1) + 4 H (2 H + 1) + V, for a tied model."""
    model = ModelConfig(vocabulary_size=10, embedding_size=4, hidden_size=4, tie_embedding=True)
    assert report_tables.parameters(run(tmp_path, model=model)) == 10 * 4 + 16 * 9 + 16 * 9 + 10


@pytest.mark.parametrize(
    ("model", "line", "parameters"),
    [
        (ModelConfig(2000, 300, 1024, 1), "2,000 → 300 → 1,024, 1 layer", 600_000 + 4096 * 1325 + 2000 * 1025),
        (ModelConfig(10, 3, (5, 4)), "10 → 3 → 5 → 4, 2 layers", 30 + 20 * 9 + 16 * 10 + 50),
        (
            ModelConfig(100, 3, 16, 1, softmax="adaptive", adaptive_cutoffs=(10, 30)),
            "100 → 3 → 16, 1 layer",
            300 + 64 * 20 + 12 * 17 + 4 * (16 + 20) + (16 + 70),
        ),
        (
            ModelConfig(10, 3, 5, 1, projection_size=2),
            "10 → 3 → 5, 1 layer projected to 2",
            30 + 20 * 3 + 20 * 2 + 20 + 2 * 5 + 30,
        ),
        (ModelConfig(10, 3, 5, cell="mlstm"), "10 → 3 → 5, 2 mlstm layers", 30 + 20 * 9 + 5 * 8 + 20 * 11 + 5 * 10 + 60),
    ],
)
def test_the_model_in_a_line(model: ModelConfig, line: str, parameters: int, tmp_path: Path) -> None:
    summary, *_ = Page(report(ReportConfig((write(tmp_path / "run", model=model),), tmp_path / "out"))).tables
    assert (summary["model"], summary["parameters"]) == ([line], [f"{parameters:,}"])


def test_settings_of_a_run_from_before_there_were_cells(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    lines = (folder / "config.yaml").read_text().splitlines()
    before = [line for line in lines if line.strip() != "cell: lstm"]
    assert len(before) == len(lines) - 1
    (folder / "config.yaml").write_text("\n".join(before))
    summary, *_ = Page(report(ReportConfig((folder,), tmp_path / "out"))).tables
    assert summary["model"] == ["2,000 → 300 → 1,024, 2 layers"]
    assert summary["parameters"] == ["16,469,904"]


@pytest.mark.usefixtures("undrawn")
def test_best_is_bold(tmp_path: Path) -> None:
    path = report(ReportConfig((write(tmp_path / "a", ROWS[:5]), write(tmp_path / "b")), tmp_path / "out"))
    bold = re.findall(r"<strong[^>]*>([^<]*)</strong>", path.read_text(encoding="utf-8"))
    assert bold == ["4.5556", "4.0000", "54.60", "1,005"]


@pytest.mark.usefixtures("undrawn")
def test_losses_over_different_vocabularies_do_not_compare(tmp_path: Path) -> None:
    runs = (write(tmp_path / "a"), write(tmp_path / "b", ROWS[:5], model=ModelConfig(vocabulary_size=500)))
    path = report(ReportConfig(runs, tmp_path / "out"))
    assert "do not compare: vocabulary_size differs." in Page(path).text
    bold = re.findall(r"<strong[^>]*>([^<]*)</strong>", path.read_text(encoding="utf-8"))
    assert bold == ["1,005"]


@pytest.mark.usefixtures("undrawn")
def test_one_run_has_nothing_to_compare(tmp_path: Path) -> None:
    page = Page(report(ReportConfig((write(tmp_path / "run"),), tmp_path / "out")))
    assert [next(iter(table)) for table in page.tables] == ["run", "setting"]
    assert "Settings that differ" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_equal_settings_are_told(tmp_path: Path) -> None:
    page = Page(report(ReportConfig((write(tmp_path / "a"), write(tmp_path / "b")), tmp_path / "out")))
    assert "the settings of all runs are the same" in page.text


@pytest.mark.usefixtures("undrawn")
def test_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    path = report(ReportConfig((write(tmp_path / "run"),), tmp_path / "out"))
    page = Page(path)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    sources = [
        value or "" for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "srcset", "href")
    ]
    assert len(sources) == 10
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", source) for source in sources)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))


def test_pictures_in_the_page_are_the_files_and_have_a_description(tmp_path: Path) -> None:
    path = report(ReportConfig((write(tmp_path / "run"),), tmp_path / "out"))
    images = [attributes for tag, attributes in Page(path).tags if tag == "img"]
    names = ["loss", "perplexity", "throughput", "gradient_norm", "learning_rate"]
    for image, name in zip(images, names, strict=True):
        content = base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
        assert content == (path.parent / f"{name}.png").read_bytes()
    assert images[0]["alt"] == (
        "Loss (nats per token) over tokens read and training time. run: from 9 to 4.556, validation from 4.667 to 4."
    )


def test_pictures_for_dark_mode_are_dark(tmp_path: Path) -> None:
    page = Page(report(ReportConfig((write(tmp_path / "run"),), tmp_path / "out")))
    (dark, *_) = [attributes for tag, attributes in page.tags if tag == "source"]
    assert dark["media"] == "(prefers-color-scheme: dark)"
    content = base64.b64decode((dark["srcset"] or "").removeprefix("data:image/png;base64,"))
    picture = imread(io.BytesIO(content), format="png")
    assert picture[:, :, :3].mean() < 0.3
    assert pixels_near(picture, report_plots.COLOURS[0]) > 1000


@pytest.mark.filterwarnings("error::UserWarning")
def test_odd_names_are_harmless(tmp_path: Path) -> None:
    names = ["<script>alert(1)<", "\"&'", "_hidden", "$x^$", "$", "名前", "new\nline", "long" * 50]
    folders = tuple(write(tmp_path / name) for name in names)
    (folders[0] / "config.yaml").write_text("framework: <script>alert(2)</script>\n'<img src=x>': <b>\n")
    path = report(ReportConfig(folders, tmp_path / "out"))
    page = Page(path)
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert sum(tag == "img" for tag, _ in page.tags) == 5
    assert page.tables[0]["run"][:6] == names[:6]
    assert page.tables[0]["framework"][:2] == ["<script>alert(2)</script>", "torch"]
    assert page.tables[2]["<img src=x>"][0] == "<b>"


def test_undecodable_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "caf\udce9")
    assert "caf" in Page(report(ReportConfig((folder,), tmp_path / "out"))).text


# --- runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/a/x", "/a/y"], ["x", "y"]),
        (["/a/run", "/b/run", "/b/other"], ["a/run", "b/run", "other"]),
        (["/a/1/run", "/b/1/run", "/b/2/run"], ["a/1/run", "b/1/run", "2/run"]),
        (["/run", "/a/run"], ["/run", "a/run"]),
    ],
)
def test_names_tell_runs_apart(folders: list[str], names: list[str]) -> None:
    assert report_runs.distinct_names([Path(folder) for folder in folders]) == names


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=4), min_size=1, max_size=8, unique_by=tuple))
def test_names_are_unique(parts: list[list[str]]) -> None:
    folders = [Path("/", *one) for one in parts]
    names = report_runs.distinct_names(folders)
    assert len(set(names)) == len(folders)
    assert all(str(folder).endswith(name) for folder, name in zip(folders, names, strict=True))


def test_a_run_given_twice_comes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    runs = read_runs([Path("."), Path("../run"), tmp_path / "run"])
    assert [one.name for one in runs] == ["run"]


@pytest.mark.parametrize("rest", ['{"step": 3, "lo', "{", '{"step": 3, "loss": 1.5}'])
def test_a_run_in_progress(rest: str, tmp_path: Path) -> None:
    """Its last line is left out unless it is whole."""
    folder = write(tmp_path / "run", "".join(json.dumps(one) + "\n" for one in ROWS[:2]) + rest)
    assert [one["step"] for one in read_rows(folder / "metrics.jsonl")] == ([1, 2, 3] if rest.endswith("}") else [1, 2])
    report(ReportConfig((folder,), tmp_path / "out"))


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    one = run(tmp_path, [row(1), row(2, loss=9.0), row(3), row(2, loss=8.0), row(3), row(4)])
    assert one.columns["step"].tolist() == [1, 2, 3, 4]
    assert one.columns["loss"][1] == 8.0


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_went_on_elsewhere_tells_where_it_begins(tmp_path: Path) -> None:
    page = Page(report(ReportConfig((write(tmp_path / "run", ROWS[4:], steps=20),), tmp_path / "out")))
    assert page.tables[0]["steps"] == ["9 of 20, from 5 on"]
    assert page.tables[0]["ranks"] == ["2"]


def test_ranks_despite_short_windows_and_a_change_of_ranks(tmp_path: Path) -> None:
    per_rank = TOKENS // 2
    tokens = np.cumsum([per_rank * 2] * 5 + [77] + [per_rank * 3] * 2 + [123]).tolist()
    assert report_tables.ranks(run(tmp_path, [row(step, tokens=count) for step, count in enumerate(tokens, 1)])) == 3
    assert report_tables.ranks(read_runs([write(tmp_path / "short", [row(1, tokens=77)])])[0]) is None


@pytest.mark.usefixtures("undrawn")
def test_without_settings_the_metrics_remain(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "config.yaml").unlink()
    page = Page(report(ReportConfig((folder,), tmp_path / "out")))
    (summary,) = page.tables
    assert summary["framework"] == summary["ranks"] == summary["model"] == summary["parameters"] == [report_tables.NOTHING]
    assert summary["loss of the last step"] == ["4.5556"]


@pytest.mark.usefixtures("undrawn")
def test_pictures_without_values_are_left_out_and_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report(ReportConfig((write(tmp_path / "a"),), out))
    (out / "mine.png").touch()
    rows = [row(1, gradient_norm=None)]
    page = Page(report(ReportConfig((write(tmp_path / "b", rows),), out)))
    assert sorted(path.name for path in out.iterdir()) == [
        "index.html", "learning_rate.png", "loss.png", "mine.png", "throughput.png",
    ]  # fmt: skip
    assert sum(tag == "img" for tag, _ in page.tags) == 3
    assert page.tables[0]["best validation loss"] == [report_tables.NOTHING]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (45.26, "45.3 s"), (59.97, "1 min 00 s"), (725, "12 min 05 s"), (3599.6, "1 h 00 min"), (93_900, "26 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert report_tables.duration(seconds) == text


NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
ANY_ROW = st.builds(
    lambda step, values: {"step": step, **values},
    st.integers(1, 10**6),
    st.dictionaries(st.sampled_from([name for name in COLUMNS if name != "step"]), NUMBERS),
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@pytest.mark.filterwarnings("error")
@given(runs=st.lists(st.lists(ANY_ROW, min_size=1, max_size=5), min_size=1, max_size=3))
def test_any_numbers_make_a_report(runs: list[list[Row]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("runs")
    folders = tuple(write(folder / f"run-{n}", rows) for n, rows in enumerate(runs))
    page = Page(report(ReportConfig(folders, folder / "out")))
    steps = [max(one["step"] for one in rows) for rows in runs]
    assert [cell.split(", from")[0] for cell in page.tables[0]["steps"]] == [f"{step:,}" for step in steps]


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "give the folders of one or more training runs"),
        ({"runs": ("a",), "smoothing": 0}, "--smoothing must be at least 1, not 0"),
    ],
)
def test_settings_that_cannot_work(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ReportConfig(**config)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "metrics.jsonl holds no step yet"),
        ('{"step": 1', "metrics.jsonl holds no step yet"),
        ('{"step": 1}\n{"step": 2,\n{"step": 3}\n', "metrics.jsonl, line 2 is not JSON: mend or remove that line"),
        ('{"step": 1}\n\n\udcff\n'.encode("utf-8", "surrogateescape").decode("latin-1"), "metrics.jsonl, line 3 is not JSON"),
        ('{"loss": 1}\n', "metrics.jsonl, line 1 is no object with a step"),
        ('{"step": true}\n', "metrics.jsonl, line 1 is no object with a step"),
        ("[1]\n", "metrics.jsonl, line 1 is no object with a step"),
        ('{"step": 1, "loss": "low"}\n', "metrics.jsonl, line 1: loss is 'low', not a number"),
    ],
)
def test_metrics_that_cannot_be_read(content: str, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "run", content)
    with pytest.raises(DataError) as caught:
        report(ReportConfig((folder,), tmp_path / "out"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folder_without_metrics(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no metrics.jsonl in .*/no: give the --out folder of a training run$"):
        report(ReportConfig((tmp_path / "no",), tmp_path / "out"))
    write(tmp_path / "runs" / "one")
    with pytest.raises(DataError, match=r"no metrics.jsonl in .*/runs: .* training run, such as .*/runs/one$"):
        report(ReportConfig((tmp_path / "runs",), tmp_path / "out"))


def test_settings_that_are_no_yaml(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(DataError, match=r"^.*/run/config.yaml is not valid YAML"):
        report(ReportConfig((folder,), tmp_path / "out"))


@pytest.mark.usefixtures("undrawn")
def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=rf"^cannot write to --out {out}: "):
            report(ReportConfig((folder,), out))


@pytest.mark.usefixtures("undrawn")
def test_a_failed_write_leaves_the_earlier_page_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    page = report(ReportConfig((write(tmp_path / "a"),), out))
    before = page.read_bytes()
    whole = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "index.html" in path.name:
            whole(path, content[:100])
            raise OSError(28, "No space left on device")
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"cannot write to --out .*: No space left on device"):
        report(ReportConfig((write(tmp_path / "b"),), out))
    assert page.read_bytes() == before


# --- what it costs ---------------------------------------------------------------------------------------


def test_no_framework_and_no_matplotlib_before_it_is_needed() -> None:
    code = "import sys, hvd_lm.report.page\n"
    code += "print(sorted({'torch', 'tensorflow', 'horovod', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_framework_and_no_pyplot_while_it_draws(tmp_path: Path) -> None:
    write(tmp_path / "run")
    code = f"""if True:
        import sys
        from hvd_lm.report.page import ReportConfig, report
        report(ReportConfig(({str(tmp_path / "run")!r},), {str(tmp_path / "out")!r}))
        print(sorted({{'torch', 'tensorflow', 'horovod', 'matplotlib.pyplot'}} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""
