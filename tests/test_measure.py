"""Measuring a link: what is timed is what it says, in each framework, and what comes out is a link that predicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pools
import pytest
from matplotlib.image import imread

from hvd_lm.communication.link import Point, read_link
from hvd_lm.communication.measure import SEVERAL, SMALLEST, MeasureConfig, expected_seconds
from hvd_lm.communication.picture import draw
from hvd_lm.communication.ring import COLLECTIVES
from hvd_lm.errors import ConfigError

CONFIG = """
vocabulary_size: 300
embedding_size: 8
hidden_size: 64
batch_size: 2
sequence_length: 96
backward_passes_per_step: 3
dropout: 0.2
threads: 1
"""


@pytest.mark.ranks
def test_operations_are_what_they_are_called(framework: str) -> None:
    first, second = pools.body("probed", 2, framework)
    for number_format in ("float32", "float16"):
        own, other = ({name.split()[0]: made for name, made in of.items() if number_format in name} for of in (first, second))
        assert set(own) == set(COLLECTIVES)
        assert own["allreduce"] == other["allreduce"] == [10, 12, 14, 16]
        assert own["allgather"] == other["allgather"] == [0, 1, 10, 11]
        assert own["broadcast"] == other["broadcast"] == [0, 1, 2, 3]
        assert (own["alltoall"], other["alltoall"]) == ([0, 1, 10, 11], [2, 3, 12, 13])
        assert (own["reducescatter"], other["reducescatter"]) == ([10, 12], [14, 16])
    assert first["several"] == second["several"] == [[0, 0]] * 3


@pytest.mark.ranks
def test_a_link_is_measured_and_predicts(framework: str, tmp_path: Path) -> None:
    out, config = tmp_path / "links" / "link.json", tmp_path / "run.yaml"
    config.write_text(f"framework: {framework}\n{CONFIG}")
    flags = ("--out", out, "--config", config, "--seconds", "2", "--largest-mb", "1")
    ended = pools.hvd_lm(2, "measure", *flags, framework=framework).expect_success()
    assert "negotiation" in ended.output
    link = read_link(out)
    assert (link.ranks, link.hosts, link.controller, link.framework) == (2, 1, "Gloo", framework)
    assert {(its.name, its.number_format) for its in link.collectives} == {
        (name, number_format) for name in COLLECTIVES for number_format in ("float32", "float16")
    }
    for its in link.collectives:
        sizes = [point.size for point in its.points if point.count == 1]
        assert sizes[:2] == [SMALLEST, 4 * SMALLEST], "two sizes at least, whatever the budget"
        assert sizes == sorted(sizes)
        assert all(0 < p.fastest <= p.seconds <= p.slowest for p in its.points)
    sums = link.of("allreduce")
    several = tuple(point.count for point in sums.points if point.count > 1)
    assert several == SEVERAL[: len(several)], "as many as the budget has room for"
    assert len(several) > 1
    assert {2**20} <= {point.size for point in sums.points}, "some large sum, whatever the budget"
    assert max(its.beta for its in link.collectives) > 0
    assert link.compute is not None
    assert (link.compute.together, link.compute.batch_size) == (3, 2)
    assert min(link.compute.forward, link.compute.update) > 0
    assert [its.number_format for its in link.contention] == ["float32", "float16"]
    for window in link.contention:
        # Of embedding, two layers with two kernels and a bias each, output kernel and bias.
        assert len(window.messages) == 9
        assert min(window.fitted, window.compute, window.communication, window.compute_beside, window.communication_beside) > 0
    assert "all gradients of a window at once, in float16, take" in ended.output
    assert imread(out.with_suffix(".png")).ndim == 3
    said = pools.hvd_lm(2, "predict", "--link", out, "--config", config, "--ranks", "2", "--json", framework=framework)
    found = json.loads(next(line for line in said.expect_success().output.splitlines() if line.startswith("{")))
    assert found["step_seconds"] > 0
    assert found["measured_ranks"] == 2


def test_what_is_to_come_is_told_from_the_last_two_sizes() -> None:
    """All latency on a long cable, all bytes on a slow one."""
    long, slow = (
        [Point(1024, 1, seconds, seconds, 1, 5), Point(4096, 1, later, later, 1, 5)]
        for seconds, later in ((0.03, 0.03), (0.1, 0.4))
    )
    assert expected_seconds(long, 16384) == pytest.approx(0.03)
    assert expected_seconds(slow, 16384) == pytest.approx(1.6)


def test_a_picture_has_axes_with_units_and_tells_curves_apart_without_colour() -> None:
    from test_predict import a_link

    link = a_link()
    several = tuple(Point(1024 * 4**power, 1, 1e-3, 9e-4, 2e-3, 5) for power in range(4))
    figure = draw(replace(link, collectives=tuple(replace(its, points=several) for its in link.collectives)))
    assert [axes.get_xlabel() for axes in figure.axes] == ["size of the operation, bytes"] * 2
    assert figure.axes[0].get_ylabel().endswith(", milliseconds")
    (legend,) = figure.legends
    looks = {(line.get_marker(), str(line.get_linestyle()), str(line._dash_pattern)) for line in legend.get_lines()}
    assert len(looks) == len(COLLECTIVES) == len({marker for marker, *_ in looks})
    assert all(axes.get_lines() for axes in figure.axes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seconds": 0.0}, "--seconds must be above 0"),
        ({"seconds": float("inf")}, "--seconds must be above 0"),
        ({"largest_mb": 0}, "--largest-mb must be in"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"out": ""}, "--out must be a path"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MeasureConfig(**settings)  # type: ignore[arg-type]
