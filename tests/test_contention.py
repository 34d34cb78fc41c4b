"""What compute and communication take of each other: rates worked out by hand, and steps that know them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_predict import WORK, a_link, of

from hvd_lm.communication.contention import Contention, Rates
from hvd_lm.communication.gradients import Sent
from hvd_lm.communication.link import Link
from hvd_lm.communication.simulation import HorovodsThread, overlap, stretched


def a_contention(compute_beside: float, communication_beside: float) -> Contention:
    """Compute takes 10 s alone, messages 5 s alone, where their sizes say 4."""
    return Contention("float32", (1000, 10), 4.0, 10.0, 5.0, compute_beside, communication_beside)


def with_rates(compute: float, alone: float, beside: float) -> Link:
    """Compute and messages take 10 s and 1 s, where sizes say `alone`; beside compute, messages take alone / beside."""
    both = alone / beside
    timed = (1000,), alone, 10.0, 1.0, 10 + (1 - compute) * both, both
    return replace(a_link(), contention=tuple(Contention(its, *timed) for its in ("float32", "float16")))


def test_rates_are_those_of_the_hand() -> None:
    # Messages are done after 8 s, compute 6 s later: of its 10 s it has done 4 by then.
    assert a_contention(14, 8).rates() == pytest.approx(Rates(0.5, 0.8, 0.5))
    # Compute is done after 12 s, the messages 2 s later: 3 of their 5 s, three fifths of 4, have passed by then.
    assert a_contention(12, 14).rates() == pytest.approx(Rates(10 / 12, 0.8, 0.2))


def test_where_neither_takes_anything_of_the_other_each_goes_as_alone() -> None:
    assert a_contention(10, 5).rates() == pytest.approx(Rates(1.0, 0.8, 0.8))


def test_what_was_no_measurement_is_bounded() -> None:
    assert a_contention(9, 4).rates() == pytest.approx(Rates(1.0, 0.8, 0.8))
    assert a_contention(1000, 999).rates().compute == 0.05


def test_work_goes_slowly_as_long_as_something_else_is_done() -> None:
    assert stretched(3, begun=2, busy_until=10, rate=0.5) == 6
    assert stretched(3, begun=2, busy_until=6, rate=0.5) == 4 + 1
    assert stretched(3, begun=2, busy_until=1, rate=0.5) == 3


def test_a_thread_serves_slowly_beside_compute() -> None:
    thread = HorovodsThread(lambda size, *_: size, busy_until=4.0, rate=0.5)
    thread.serve([Sent("a", 0.0, 1.0, "float32"), Sent("b", 1.0, 2.0, "float32")])
    # One takes 2 s; of the other's 2 s of work one is done in the next 2 s, the rest in 1 s.
    assert [(served.begun, served.done) for served in thread.operations] == [(0, 2), (2, 5)]
    assert overlap(thread.operations, 4.0) == 4
    assert overlap(thread.operations, 1.0) == 1


def test_rates_of_one_change_nothing() -> None:
    assert of(with_rates(1, 1, 1)) == of(a_link())


def test_compute_is_longer_by_what_it_loses_beside_communication() -> None:
    found, without = of(with_rates(0.6, 0.9, 0.5)), of(a_link())
    beside = found.last_backward_seconds + found.contention_seconds
    assert found.contention_seconds == pytest.approx(0.4 * overlap(found.operations, beside), rel=1e-3)
    assert found.contention_seconds > 0
    parts = ("forward", "backward", "contention", "exposed", "update")
    assert found.step_seconds == pytest.approx(sum(getattr(found, f"{part}_seconds") for part in parts))
    assert (found.forward_seconds, found.backward_seconds) == (without.forward_seconds, without.backward_seconds)


@given(st.floats(0.1, 1), st.floats(0.1, 1), st.floats(0.1, 1), st.sampled_from(["none", "fp16", "powersgd"]), st.booleans())
def test_contention_makes_no_step_shorter(compute: float, alone: float, slower: float, way: str, late: bool) -> None:
    link = with_rates(compute, alone, alone * slower)
    late = late and way != "powersgd"
    communication = replace(WORK.communication, compression=way, late_gradients=late)
    work = replace(WORK, communication=communication)
    # Where a tensor comes later it may share a turn.
    assert of(link, work).step_seconds >= of(a_link(), work).step_seconds * 0.95
