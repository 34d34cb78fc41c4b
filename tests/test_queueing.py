"""A timeline as a queue: what is read of it, however it ends, and figures that are worked out by hand."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.command_line.commands import main
from hvd_lm.communication.queueing import Queueing, QueueingConfig, analyse, burst_wait, mg1_wait, queueing, words
from hvd_lm.communication.timeline import Change, Passage, Timeline, read_timeline
from hvd_lm.errors import DataError

Event = dict[str, Any]


def named(pid: int, name: str) -> list[Event]:
    return [
        {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}},
        {"name": "process_sort_index", "ph": "M", "pid": pid, "args": {"sort_index": pid}},
    ]


def passage(pid: int, arrived: int, ready: int, begun: int, done: int) -> list[Event]:
    """As Horovod writes an all-reduce over Gloo; in microseconds."""
    return [
        {"ph": "B", "name": "NEGOTIATE_ALLREDUCE", "ts": arrived, "pid": pid},
        {"ph": "X", "name": "0", "ts": ready, "pid": pid, "dur": 0},
        {"ph": "E", "ts": ready, "pid": pid},
        {"ph": "B", "name": "ALLREDUCE", "ts": begun, "pid": pid},
        {"ph": "B", "name": "GLOO_ALLREDUCE", "ts": begun + 1, "pid": pid},
        {"ph": "E", "ts": done - 1, "pid": pid},
        {"ph": "E", "ts": done, "pid": pid, "args": {"dtype": "float32", "shape": "[3]"}},
    ]


EVENTS: list[Event] = [
    {"name": "process_name", "ph": "M", "pid": 0, "args": {"start_time_since_epoch_in_micros": 1}},
    *named(1, "allreduce.gradient.a"),
    *named(2, "allreduce.gradient.b"),
    *named(3, "allreduce.loss"),
    # Both at once; b waits for a, and a comes again.
    *passage(1, 1_000_000, 1_000_000, 2_000_000, 4_000_000),
    *passage(2, 1_000_000, 2_000_000, 4_000_000, 5_000_000),
    *passage(3, 1_500_000, 1_500_000, 5_000_000, 6_000_000),
    *passage(1, 7_000_000, 7_000_000, 7_000_000, 9_000_000),
]
LAST_OF_FIRST = '"[3]"}}'
TEXT = "[\n" + ",\n".join(map(json.dumps, EVENTS)) + "]\n"


def write(path: Path, text: str = TEXT) -> Path:
    path.write_text(text)
    return path


def of(path: Path, text: str = TEXT, tensors: str | None = None) -> Queueing:
    return queueing(QueueingConfig(write(path / "timeline.json", text), tensors))


# --- figures ---------------------------------------------------------------------------------------------


def test_figures_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    """Of gradients alone: in the system are 2 from 1 s to 4 s, 1 to 5 s, none to 7 s, 1 to 9 s; 8 s in all."""
    found = of(tmp_path)
    assert found.observed_seconds == pytest.approx(8)
    assert found.number_in_system == pytest.approx((2 * 3 + 1 + 0 + 2) / 8)
    assert found.arrival_rate == pytest.approx(3 / 8)
    assert found.time_in_system == pytest.approx((3 + 4 + 2) / 3)
    assert found.little_difference == pytest.approx(0, abs=1e-12)
    assert found.utilisation == pytest.approx((2 + 1 + 2) / 8)
    parts = (found.negotiation_seconds, found.wait_seconds, found.service_seconds)
    assert parts == pytest.approx((1 / 3, (1 + 2 + 0) / 3, (2 + 1 + 2) / 3))
    assert (found.arrivals, found.unfinished, found.services, found.bursts) == (3, 0, 3, 2)
    # lambda E[S^2] / (2 (1 - rho)) = 3/8 * 3 / (2 * 3/8)
    assert found.predictions.mg1_wait == pytest.approx(1.5)
    assert found.arrival_variation == pytest.approx(1.0)  # gaps of 0 s and 6 s


def test_all_tensors_are_customers_if_asked_for(tmp_path: Path) -> None:
    assert of(tmp_path, tensors="").arrivals == 4
    assert of(tmp_path, tensors="loss").arrivals == 1


def test_tensors_of_other_programs_are_customers_all_of_them(tmp_path: Path) -> None:
    assert of(tmp_path, TEXT.replace("gradient", "fc.weight")).arrivals == 4


def test_fused_tensors_share_a_service() -> None:
    together = [Passage(name, "allreduce", 0, 0, 1, 3) for name in "ab"]
    changes = (Change(0, "a", 1), Change(0, "b", 1), Change(3, "a", -1), Change(3, "b", -1))
    found = analyse(Timeline(tuple(together), changes, 3, False, 0))
    assert (found.services, found.arrivals) == (1, 2)
    assert found.utilisation == pytest.approx(2 / 3)


def test_mg1_is_mm1_for_exponential_services() -> None:
    """Whose mean wait is rho / (mu - lambda)."""
    services = np.random.default_rng(1).exponential(0.1, 400_000)
    assert mg1_wait(5, services) == pytest.approx(0.5 / (10 - 5), rel=0.02)


def test_bursts_of_one_are_mg1() -> None:
    services = np.array([0.1, 0.3])
    assert burst_wait(2, np.ones(3), services) == pytest.approx(mg1_wait(2, services))


def test_one_burst_in_a_long_time_waits_for_itself_alone() -> None:
    """Of 4 services of 1 s the waits are 0, 1, 2 and 3 s."""
    assert burst_wait(1e-9, np.array([4.0]), np.ones(4)) == pytest.approx(1.5)


@pytest.mark.parametrize("services", [np.full(4, 0.1), np.array([0.05, 0.25])])
def test_waits_are_those_of_a_simulated_queue(services: np.ndarray) -> None:
    """Lindley's recursion over services that come in bursts of 3, and one by one."""
    generator = np.random.default_rng(2)
    for size, rate in ((1, 4.0), (3, 1.2)):
        gaps = generator.exponential(1 / rate, 200_000)
        served = generator.choice(services, (len(gaps), size))
        begins, waits = 0.0, []
        for gap, of_burst in zip(gaps, served, strict=True):
            begins = max(0.0, begins - gap)
            waits += [begins, *(begins + np.cumsum(of_burst)[:-1])]
            begins += of_burst.sum()
        assert burst_wait(rate, np.array([float(size)]), services) == pytest.approx(np.mean(waits), rel=0.05)


def test_a_saturated_server_lets_wait_without_end(tmp_path: Path) -> None:
    assert mg1_wait(10, np.array([0.1])) == math.inf
    assert burst_wait(5, np.array([2.0]), np.array([0.1])) == math.inf
    full = [*named(1, "gradient"), *passage(1, 0, 0, 0, 10), *passage(1, 10, 10, 10, 20)]
    found = of(tmp_path, json.dumps(full))
    assert found.utilisation == pytest.approx(1)
    assert found.to_dict()["predictions"]["mg1_wait"] is None
    assert "without end" in words(found)


def test_the_textbook_case() -> None:
    """100 nodes, 10 tasks a second each, 0.1 s a task, 100 servers: L is a number of tasks, and the servers are just saturated."""
    nodes, each, service, servers = 100, 10, 0.1, 100
    rate = nodes * each
    assert rate == 1000
    assert rate * service == pytest.approx(100)
    assert rate * service / servers == pytest.approx(1)
    assert mg1_wait(rate / servers, np.array([service])) == math.inf
    assert mg1_wait(0.9 * rate / servers, np.array([service])) == pytest.approx(0.45)


# --- files -----------------------------------------------------------------------------------------------


@given(st.integers(0, len(TEXT) - 3))
def test_a_timeline_may_end_anywhere(tmp_path_factory: pytest.TempPathFactory, end: int) -> None:
    path = write(tmp_path_factory.getbasetemp() / "cut.json", TEXT[:end])
    if end < TEXT.index(LAST_OF_FIRST) + len(LAST_OF_FIRST):
        with pytest.raises(DataError, match=r"^[^\n]*holds no tensor[^\n]*$"):
            read_timeline(path)
        return
    found = read_timeline(path)
    assert found.is_cut
    assert found.unreadable == 0
    whole = read_timeline(write(path, TEXT))
    assert not whole.is_cut
    assert found.passages == whole.passages[: len(found.passages)]
    assert found.changes == tuple(change for change in whole.changes if change in found.changes)


@given(st.integers(0, len(TEXT)), st.integers(1, 300), st.text('{}[],:"ab0\\\n', max_size=20))
def test_a_timeline_may_be_damaged_anywhere(tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, put: str) -> None:
    path = write(tmp_path_factory.getbasetemp() / "damaged.json", TEXT[:at] + put + TEXT[at + cut :])
    with contextlib.suppress(DataError):
        found = queueing(QueueingConfig(path, ""))
        assert found.number_in_system > 0
        assert found.unfinished >= 0


def test_one_damaged_event_costs_one_tensor(tmp_path: Path) -> None:
    found = of(tmp_path, TEXT.replace('"ts": 4000000', '"ts": 40x', 1))
    assert found.unreadable == 1
    assert not found.is_cut
    assert found.arrivals == 2, "its arrival does not count for ever"


def test_an_arrival_that_is_not_seen_done_counts(tmp_path: Path) -> None:
    """In L and lambda; W knows only of those who are."""
    found = of(tmp_path, TEXT[: TEXT.rindex('{"ph": "E"')])
    assert (found.arrivals, found.unfinished, found.is_cut) == (3, 1, True)
    assert "cut off: 1 arrivals are not seen done" in words(found)


def test_a_tensor_without_negotiation_comes_when_it_is_served(tmp_path: Path) -> None:
    events = [event for event in EVENTS if not event.get("name", "").startswith("NEGOTIATE") and event.get("ts") != 1_000_000]
    found = read_timeline(write(tmp_path / "t.json", json.dumps(events)))
    assert {p.negotiated for p in found.passages} == {0.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no tensor that Horovod has served"),
        ("[]", "holds no tensor that Horovod has served"),
        ('{"steps": 3}', "holds no tensor that Horovod has served"),
        ("\0\x7f[{[{", "holds no tensor that Horovod has served"),
        (json.dumps([*named(1, "a"), *passage(1, 0, 0, 0, 0)]), "is over in no time"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    assert main(["queueing", "--timeline", str(write(tmp_path / "t.json", text))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_what_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queueing", "--timeline", str(tmp_path / "none.json")]) == 2
    assert "cannot read the timeline" in capsys.readouterr().err
    assert main(["queueing", "--timeline", str(write(tmp_path / "t.json")), "--tensors", "weights"]) == 2
    assert "no tensor with 'weights' in its name, but such as allreduce.gradient.a" in capsys.readouterr().err


def test_command_prints_words_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timeline = str(write(tmp_path / "t.json"))
    assert main(["queueing", "--timeline", timeline]) == 0
    assert "which is 0.00% from L" in capsys.readouterr().out
    assert main(["queueing", "--timeline", timeline, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == of(tmp_path).to_dict()
    assert {"number_in_system", "arrival_rate", "time_in_system", "utilisation", "predictions"} <= set(figures)
