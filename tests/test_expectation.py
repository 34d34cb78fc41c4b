"""What a run expects of its steps on a measured link, what it says when they are slower, and where it expects nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED
from hypothesis import given
from hypothesis import strategies as st
from test_predict import WORK, a_link, of

from hvd_lm.command_line.commands import main
from hvd_lm.communication.link import Link, write_link
from hvd_lm.communication.measure import processor
from hvd_lm.communication.phases import phases
from hvd_lm.compression.selectors import TopK
from hvd_lm.config import CommunicationConfig
from hvd_lm.report.plots import PLOTS, draw
from hvd_lm.report.runs import read_runs
from hvd_lm.training.expectation import IN_A_ROW, SLOWER, Expectation, Phase

Row = dict[str, Any]
TOKENS = 4 * 4 * 16 * 4
PREDICTED = of(a_link(beta=1e-6))
assert PREDICTED.exposed_seconds > 0.01


def rows_of(seconds: list[float], tokens: list[int] | None = None, **parts: float) -> list[Row]:
    """As the loop writes them, of steps that took so long; the first one is not judged."""
    given = tokens or [TOKENS] * len(seconds)
    return [
        {"step": step, "seconds": float(np.sum(seconds[:step])), "tokens": sum(given[:step]), **parts}
        for step in range(1, len(seconds) + 1)
    ]


def said(rows: list[Row], *expected: Phase) -> list[tuple[int, str]]:
    """What is said of `rows`, after which step."""
    expectation = Expectation(expected or (Phase(0, PREDICTED),), TOKENS)
    return [(row["step"], words) for row in rows if (words := expectation.judge(row))]


# --- when it speaks --------------------------------------------------------------------------------------


def slow(count: int, factor: float = 1.5 * SLOWER) -> list[float]:
    return [factor * PREDICTED.step_seconds] * count


def fast(count: int) -> list[float]:
    return slow(count, 0.99 * SLOWER)


def test_it_speaks_once_after_twenty_slow_steps_in_a_row() -> None:
    ((step, words),) = said(rows_of([*fast(3), *slow(3 * IN_A_ROW)]))
    assert step == 3 + IN_A_ROW
    took = 1.5 * SLOWER * PREDICTED.step_seconds
    assert f"the last 20 steps took {took * 1e3:,.1f} ms each where {PREDICTED.step_seconds * 1e3:,.1f} ms were" in words
    assert "\n" not in words


@pytest.mark.parametrize(
    "seconds", [fast(90), [*(slow(IN_A_ROW - 1) + fast(1)) * 4], slow(IN_A_ROW)], ids=["not slow", "a fast one between", "too few"]
)
def test_it_is_silent_before(seconds: list[float]) -> None:
    assert said(rows_of(seconds)) == []


def test_a_short_window_is_not_judged() -> None:
    """It is as fast as it is short: slow ones on both of its sides are in a row."""
    seconds = [*slow(11), 1e-6, *slow(10)]
    assert [step for step, _ in said(rows_of(seconds, [*[TOKENS] * 11, 64, *[TOKENS] * 10]))] == [22]
    assert said(rows_of(seconds)) == []


def test_each_part_of_a_run_has_its_own_expectation() -> None:
    """Exact steps come before those of PowerSGD."""
    exact = replace(PREDICTED, step_seconds=10 * PREDICTED.step_seconds)
    expected = Phase(0, exact), Phase(30, PREDICTED)
    seconds = [*slow(30), *fast(50)]
    assert said(rows_of(seconds), *expected) == []
    assert [step for step, _ in said(rows_of([*slow(30), *slow(30)]), *expected)] == [50]
    expectation = Expectation(expected, TOKENS)
    assert expectation.figures(30)["predicted_seconds"] == exact.step_seconds
    assert expectation.figures(31)["predicted_seconds"] == PREDICTED.step_seconds


# --- the reason ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, "computing on rank 0"),
        ({"data_seconds": 0.9}, "waits for text"),
        ({"checkpoint_seconds": 0.9}, "waits for checkpoints"),
        ({"communication_seconds": 0.9, "communication_seconds_least": 0.88}, "waits for the link, of all ranks alike"),
        ({"communication_seconds": 0.9, "communication_seconds_least": 0.01}, "waits for a slower rank"),
        # The others wait for this one.
        ({"communication_seconds": 0.01, "communication_seconds_least": 0.01}, "computing on rank 0"),
    ],
)
def test_the_likely_reason_is_the_largest_part(parts: dict[str, float], reason: str) -> None:
    """Of a second beside what was predicted."""
    waits = {"communication_seconds": PREDICTED.exposed_seconds, "communication_seconds_least": PREDICTED.exposed_seconds}
    seconds = [PREDICTED.step_seconds + 1.0] * (IN_A_ROW + 1)
    ((_, words),) = said(rows_of(seconds, **waits | parts))
    assert f", went into {reason}" in words


def test_the_reason_is_no_larger_than_the_difference() -> None:
    """A checkpoint is waited for between steps, too."""
    seconds = [PREDICTED.step_seconds + 1.0] * (IN_A_ROW + 1)
    ((_, words),) = said(rows_of(seconds, checkpoint_seconds=7.0))
    assert "most of the difference, 1.00 s, went into waits for checkpoints" in words


def test_a_rank_alone_waits_for_nobody() -> None:
    expected = of(a_link(), ranks=1)
    rows = rows_of([2 * expected.step_seconds] * (IN_A_ROW + 1))
    ((_, words),) = said(rows, Phase(0, expected))
    assert "computing on rank 0" in words
    assert Expectation((Phase(0, expected),), TOKENS).figures(1) == {"predicted_seconds": expected.step_seconds}


# --- runs ------------------------------------------------------------------------------------------------

SMALL = [*launcher.SMALL, "--batch-size", "4", "--backward-passes-per-step", "2", "--threads", "1"]
FASTER_THAN_ANY = 1e-9


def here(framework: str = "torch", controller: str = "Gloo", **changes: Any) -> Link:
    """A link of this machine, and a model's compute, faster than any machine."""
    link = a_link(alpha=1e-12, beta=1e-15, negotiation=1e-12, ranks=2)
    assert link.compute is not None
    compute = replace(link.compute, forward=FASTER_THAN_ANY, backward=FASTER_THAN_ANY, update=FASTER_THAN_ANY)
    return replace(link, hosts=1, controller=controller, framework=framework, processor=processor(), compute=compute, **changes)


@pytest.mark.ranks
def test_ranks_say_what_they_expect_and_what_became_of_it(framework: str, tmp_path: Path) -> None:
    write_link(here(framework, device="tensors on cpu"), tmp_path / "link.json")
    flags = ["--out", tmp_path / "run", "--link", tmp_path / "link.json", "--steps", "24", *SMALL]
    ended = pools.hvd_lm(2, "train", "--framework", framework, *flags)
    assert ended.output.count("predicted: ") == 1
    assert ", 1.0 ms of it communication that nothing hides" in ended.output, "a cycle of Horovod"
    (warning,) = (line for line in ended.output.splitlines() if "warning" in line)
    assert "the last 20 steps took" in warning
    rows = launcher.metrics(tmp_path / "run")
    work = replace(WORK, communication=CommunicationConfig(backward_passes_per_step=2))
    predicted = of(here(), work, ranks=2)
    for row in rows:
        assert row["predicted_seconds"] == pytest.approx(predicted.step_seconds)
        assert row["predicted_communication_seconds"] == pytest.approx(predicted.exposed_seconds)
    (run,) = read_runs([tmp_path / "run"])
    (plot,) = (plot for plot in PLOTS if plot.name == "step_time")
    measured, drawn = draw(plot, [run]).axes[0].get_lines()
    assert np.asarray(measured.get_ydata())[1:] == pytest.approx(np.diff([row["seconds"] for row in rows]))
    assert np.asarray(drawn.get_ydata()) == pytest.approx([predicted.step_seconds] * 24)
    assert (measured.get_linestyle(), drawn.get_linestyle(), drawn.get_marker()) == ("-", ":", "x")


@pytest.mark.skipif("torch" not in INSTALLED, reason="links are of torch")
@pytest.mark.parametrize(
    ("change", "flags", "reason"),
    [
        (lambda link: replace(link, processor="an abacus"), [], "it was measured on an abacus, and rank 0 is on "),
        (lambda link: replace(link, threads=7), [], "it was measured with 7 thread(s) a rank, and rank 0 has 1"),
        (lambda link: replace(link, device="torch on cuda:0"), [], "it was measured with torch on cuda:0, and rank 0 has torch"),
        (lambda link: replace(link, compute=None), [], "the link knows no model's compute"),
        (lambda link: link, ["--layers", "1"], "the compute was timed with layers 2, and the run has 1"),
        (lambda link: link, ["--autotune"], "--autotune is not predicted yet"),
    ],
)
def test_what_cannot_be_predicted_is_a_warning(
    change: Callable[[Link], Link], flags: list[str], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_link(change(here()), tmp_path / "link.json")
    out = tmp_path / "run"
    assert main(["train", "--link", str(tmp_path / "link.json"), "--steps", "1", "--out", str(out), *SMALL, *flags]) == 0
    told = capfd.readouterr().err
    (line,) = (line for line in told.splitlines() if "warning: --link predicts nothing of this run" in line)
    assert reason in line
    assert "predicted:" not in told
    assert not any(name.startswith("predicted") for name in json.loads((out / "metrics.jsonl").read_text()))


@pytest.mark.ranks
@pytest.mark.skipif("torch" not in INSTALLED, reason="links are of torch")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"controller": "MPI"}, "it was measured over MPI, and this run is over Gloo"),
        ({"hosts": 2}, "it was measured on 2 host(s), and this run has 1"),
    ],
)
def test_another_link_predicts_nothing(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_link(replace(here(), **changes), tmp_path / "link.json")
    flags = ["--framework", "torch", "--out", tmp_path / "run", "--link", tmp_path / "link.json", "--steps", "1", *SMALL]
    assert reason in pools.hvd_lm(2, "train", *flags).output


def test_a_link_that_is_no_file_is_refused_before_anything_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--link", str(tmp_path / "no.json"), "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot read --link" in line
    assert not (tmp_path / "run").exists()


# --- phases ----------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.sampled_from([0.001, 0.01, 0.1, 0.5]))
def test_phases_of_topk_have_the_shares_of_their_steps(start: int, share: float) -> None:
    its = CommunicationConfig(compression="topk", topk_share=share, topk_start_steps=start)
    found = phases(its)
    topk = TopK(share, 0.0, start)
    for step in range(start + 2):
        (phase, *_) = (of_phase for first, of_phase in reversed(found) if first <= step)
        assert phase.topk_share == topk.share_at(step)
    assert found[-1][1] == its
    assert len(found) == len({of_phase.topk_share for _, of_phase in found})


def test_an_average_is_a_part_of_the_step_that_makes_it() -> None:
    """After each third step, counted from those that all make together on."""
    work = replace(WORK, communication=CommunicationConfig(backward_passes_per_step=4, reduce_every=3, reduce_start_steps=2))
    predicted = of(a_link(), work)
    own, whole = predicted.step_seconds - predicted.averaging_seconds, 3 * predicted.averaging_seconds
    expectation = Expectation((Phase(0, PREDICTED), Phase(2, predicted, every=3)), TOKENS)
    found = [expectation.figures(step)["predicted_seconds"] for step in range(1, 9)]
    together = PREDICTED.step_seconds
    assert found == pytest.approx([together, together, own, own, own + whole, own, own, own + whole])


def test_phases_of_powersgd() -> None:
    its = CommunicationConfig(compression="powersgd", powersgd_start_steps=7)
    assert phases(its) == ((0, replace(its, compression="none")), (7, its))
    local = CommunicationConfig(reduce_every=4, reduce_start_steps=9)
    assert phases(local) == ((0, replace(local, reduce_every=1)), (9, local))
    for other in (replace(its, powersgd_start_steps=0), CommunicationConfig(), CommunicationConfig(compression="fp16")):
        assert phases(other) == ((0, other),)
