"""Predictions of the ways that are algorithms of their own: top-k, steps of a rank's own, gradients one step late."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_predict import MODEL, WORK, a_link, of

from hvd_lm.communication.gradients import average, gradients
from hvd_lm.communication.measure import Work
from hvd_lm.communication.parts import HOROVODS_CYCLE
from hvd_lm.communication.ring import bandwidth_bound
from hvd_lm.compression.selectors import TopK, sampling
from hvd_lm.config import CommunicationConfig, ModelConfig
from hvd_lm.model.stages import parameters

SHAPES = {name: one.shape for name, one in parameters(MODEL).items()}
VALUES = sum(map(math.prod, SHAPES.values()))
MATRICES = {name: math.prod(shape) for name, shape in SHAPES.items() if len(shape) == 2}
COMPUTE = 4 * 0.03 + 0.005
A_PASS = 0.005 / (10 * VALUES)
ALPHA, BETA, NEGOTIATION, RANKS = st.floats(0, 1e-3), st.floats(1e-12, 1e-5), st.floats(0, 1e-2), st.integers(2, 300)


def by(**communication: Any) -> Work:
    return replace(WORK, communication=CommunicationConfig(backward_passes_per_step=4, **communication))


TOPK = by(compression="topk", topk_share=0.01)
WAYS = {"topk": TOPK, "local": by(reduce_every=8), "late": by(late_gradients=True)}
way = pytest.mark.parametrize("work", WAYS.values(), ids=WAYS)


# --- of all of them --------------------------------------------------------------------------------------


@way
@given(ALPHA, BETA, NEGOTIATION, RANKS)
def test_a_step_is_its_parts_and_never_below_its_bounds(
    work: Work, alpha: float, beta: float, negotiation: float, ranks: int
) -> None:
    found = of(a_link(alpha, beta, negotiation), work, ranks)
    beside = found.compression_seconds + found.exposed_seconds + found.averaging_seconds
    assert found.step_seconds == pytest.approx(COMPUTE + beside)
    assert found.scaling_efficiency == pytest.approx(COMPUTE / found.step_seconds)
    assert found.exposed_seconds >= found.closed_form_exposed_seconds - 1e-12
    assert found.communication_seconds >= found.bandwidth_bound_seconds - 1e-12
    assert found.bandwidth_bound_seconds == pytest.approx(found.sent_bytes * beta)
    assert found.step_seconds >= found.bandwidth_bound_seconds * (1 - 1e-9)


@way
@given(ALPHA, BETA, st.floats(1, 10), RANKS)
def test_a_step_grows_with_latency_bytes_and_ranks(work: Work, alpha: float, beta: float, factor: float, ranks: int) -> None:
    """Up to what a tensor saves that shares a turn: a negotiation and a cycle for each."""
    link = a_link(alpha, beta, negotiation=1e-4)
    here = of(link, work, ranks)
    saved = len(here.operations) * (1e-4 + HOROVODS_CYCLE)
    for other in (
        of(a_link(alpha * factor, beta, 1e-4), work, ranks),
        of(a_link(alpha, beta * factor, 1e-4), work, ranks),
        of(link, work, ranks + 1),
    ):
        assert other.step_seconds >= here.step_seconds - saved


@way
def test_one_rank_has_nothing_to_send(work: Work) -> None:
    found = of(a_link(), work, ranks=1)
    assert found.step_seconds == pytest.approx(COMPUTE)
    assert (found.sent_bytes, found.communication_seconds, found.operations) == (0, 0, ())


@way
def test_it_pays_on_a_slow_link(work: Work) -> None:
    slow = a_link(beta=1e-6)
    assert of(slow, work).step_seconds < of(slow).step_seconds


# --- top-k -----------------------------------------------------------------------------------------------


def test_values_and_places_of_all_matrices_travel_in_one_message_after_the_backward() -> None:
    """Of 3 ranks each k values, as 4 bytes and 4 for its place; biases as they are; nobody asks which rows were touched."""
    found = {one.name: one for one in gradients(MODEL, WORK.data, TOPK.communication, 3, backward=1.0)}
    assert found.keys() == {"loss", "gradient.selected", *(f"gradient.{name}" for name in SHAPES if name not in MATRICES)}
    selected = found["gradient.selected"]
    chosen = sum(math.ceil(0.01 * values) for values in MATRICES.values())
    assert (selected.size, selected.ready, selected.collective) == (3 * 8 * chosen, 1.0, "allgather")
    of_one = found["gradient.lstm.0.bias"]
    assert (of_one.size, of_one.collective) == (4 * 128, "allreduce")


def test_what_is_selected_is_what_the_selector_selects() -> None:
    """Of a model whose parameters are looked up in the output, too."""
    model = ModelConfig(vocabulary_size=500, embedding_size=16, hidden_size=(8, 32), softmax="sampled", sampled_words=50)
    names = {one.name.removeprefix("gradient.") for one in gradients(model, WORK.data, TOPK.communication, 2, 1.0)}
    topk = TopK(0.01)
    for name, parameter in parameters(model).items():
        assert (name in names) == (topk.count(name, parameter.shape, 0) == 0)
    assert "touched_rows.output" in names, "the output's bias travels by rows"
    assert "touched_rows" not in names


def test_a_share_of_a_half_is_exact() -> None:
    half = by(compression="topk", topk_share=0.5)
    assert of(a_link(), half) == of(a_link())


def test_selection_takes_its_passes() -> None:
    """20 over the values, 600 for each that is sorted; then one, and 15 for each that arrives."""
    link = a_link(alpha=0, beta=0, negotiation=0)
    counts = {name: math.ceil(0.01 * values) for name, values in MATRICES.items()}
    samples = [sampling(values, SHAPES[name][1], counts[name]) for name, values in MATRICES.items()]
    to_sort = sum(its.sampled + its.place * its.stride for its in samples)
    values, arrive = sum(MATRICES.values()), 4 * sum(counts.values())
    expected = A_PASS * (20 * values + 600 * to_sort + values + 15 * arrive)
    assert of(link, TOPK).compression_seconds == pytest.approx(expected)
    momentum = replace(TOPK, communication=replace(TOPK.communication, topk_momentum=0.9))
    assert of(link, momentum).compression_seconds == pytest.approx(expected + 5 * A_PASS * values)


@given(ALPHA, BETA, NEGOTIATION, RANKS)
def test_nothing_hides_what_was_selected(alpha: float, beta: float, negotiation: float, ranks: int) -> None:
    """n - 1 steps of an n-th part of the message, after its negotiation."""
    link = a_link(alpha, beta, negotiation)
    found = of(link, TOPK, ranks)
    chosen = sum(math.ceil(0.01 * values) for values in MATRICES.values())
    assert found.exposed_seconds >= link.negotiation(ranks) + (ranks - 1) * (alpha + 8 * chosen * beta) - 1e-9
    assert found.operations[-1].tensors == ("gradient.selected",)


def test_each_rank_more_has_a_message_more() -> None:
    """Gathered, not summed: what leaves a rank grows with the ranks, where a ring's does not."""
    few, many = (of(a_link(), TOPK, ranks).sent_bytes for ranks in (4, 64))
    assert many > 5 * few
    assert of(a_link(), ranks=64).sent_bytes < 2 * of(a_link(), ranks=4).sent_bytes


# --- steps of a rank's own -------------------------------------------------------------------------------


def test_an_average_is_that_of_the_hand() -> None:
    """Of 4 ranks, every 8 steps: each parameter by itself, 6/4 of its bytes; eight passes over each value."""
    found = of(a_link(alpha=1e-3, beta=1e-6, negotiation=0.01), by(reduce_every=8, cycle_time_ms=1e-6))
    blocks = len(SHAPES)
    assert [one.size for one in average(MODEL)] == [4 * math.prod(shape) for shape in SHAPES.values()]
    whole = blocks * (0.01 + 6 * 1e-3) + 1.5 * 4 * VALUES * 1e-6 + 8 * A_PASS * VALUES
    assert found.averaging_seconds == pytest.approx(whole / 8)


def test_large_weights_are_averaged_in_blocks() -> None:
    model = ModelConfig(vocabulary_size=200_000, embedding_size=64, hidden_size=32)
    blocks = [one for one in average(model) if one.name.startswith("embedding.")]
    assert len(blocks) > 1
    assert sum(one.size for one in blocks) == 4 * 200_000 * 64


def test_no_gradient_travels_and_the_average_less_often() -> None:
    found = {one.name for one in gradients(MODEL, WORK.data, by(reduce_every=2).communication, 2, 1.0)}
    assert found == {"loss"}
    link = a_link(beta=1e-6)
    steps = [of(link, by(reduce_every=every)) for every in (2, 4, 8, 1000, 10**6)]
    assert [one.step_seconds for one in steps] == sorted((one.step_seconds for one in steps), reverse=True)
    first, second, *_, last = steps
    assert first.averaging_seconds == pytest.approx(2 * second.averaging_seconds)
    assert last.averaging_seconds < 1e-5
    in_a_step = bandwidth_bound(32, 4, 1.0)
    assert second.sent_bytes == pytest.approx(in_a_step + bandwidth_bound(4 * VALUES, 4, 1.0) / 4)


# --- one step late ---------------------------------------------------------------------------------------


def test_a_reduction_that_fits_into_the_next_window_costs_nothing() -> None:
    link = a_link(alpha=0, beta=1e-7, negotiation=0)
    found = of(link, WAYS["late"])
    assert of(link).exposed_seconds > 0
    assert 0 < found.communication_seconds < COMPUTE - 0.005
    assert found.step_seconds == pytest.approx(COMPUTE)
    assert found.scaling_efficiency == 1


def test_a_longer_one_costs_what_the_window_does_not_hide() -> None:
    """The window of 0.12 s; all is ready by then, so that the link is never idle."""
    found = of(a_link(alpha=0, beta=1e-6, negotiation=0), WAYS["late"])
    assert found.communication_seconds > 0.12
    assert found.exposed_seconds == pytest.approx(found.communication_seconds - 4 * 0.03)
    assert found.operations[0].begun == 0.0


@given(ALPHA, BETA, NEGOTIATION, RANKS)
def test_late_is_never_later(alpha: float, beta: float, negotiation: float, ranks: int) -> None:
    """But for a turn that the flags may need of their own."""
    link = a_link(alpha, beta, negotiation)
    late, now = of(link, WAYS["late"], ranks), of(link, ranks=ranks)
    assert late.sent_bytes == pytest.approx(now.sent_bytes)
    turn = negotiation + HOROVODS_CYCLE
    assert late.exposed_seconds <= now.exposed_seconds + 2 * turn
    assert late.exposed_seconds >= late.communication_seconds - 4 * 0.03 - 1e-9


def test_late_halves_are_half_as_long() -> None:
    link = a_link(alpha=0, beta=1e-5, negotiation=0)
    halved = of(link, by(late_gradients=True, compression="fp16"))
    assert halved.communication_seconds < 0.51 * of(link, WAYS["late"]).communication_seconds
