"""Predictions: closed forms against cases worked out by hand, the simulation against them, fits, and files that do not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.command_line.commands import main
from hvd_lm.communication import ring
from hvd_lm.communication.compressed import Pace, Window, simulate_compressed
from hvd_lm.communication.compute import line
from hvd_lm.communication.fit import fit, middle_mean
from hvd_lm.communication.gradients import Sent, distinct_words, gradients
from hvd_lm.communication.link import Collective, Compute, Link, Point, fitted, read_link, write_link
from hvd_lm.communication.measure import Work
from hvd_lm.communication.parts import HOROVODS_CYCLE
from hvd_lm.communication.predict import Prediction, predict
from hvd_lm.communication.ring import COLLECTIVES, bandwidth_bound, course
from hvd_lm.communication.simulation import HorovodsThread, served_in_turn, simulate
from hvd_lm.compression.compressors import PowerSGD
from hvd_lm.config import CommunicationConfig, DataConfig, ModelConfig, OptimizerConfig, TopologyConfig
from hvd_lm.errors import ConfigError, DataError
from hvd_lm.model.stages import parameters
from hvd_lm.plain_values import to_dict

MODEL = ModelConfig(vocabulary_size=1000, embedding_size=24, hidden_size=32, layers=2)
WORK = Work(MODEL, DataConfig(batch_size=4, sequence_length=16), OptimizerConfig(), CommunicationConfig(backward_passes_per_step=4))

MLSTM_4096 = ModelConfig(
    vocabulary_size=256, embedding_size=64, hidden_size=4096, layers=1, cell="mlstm", weight_normalization=True
)
"""As in jobs/recipes/mlstm-4096.yaml."""


def a_link(alpha: float = 1e-4, beta: float = 1e-8, negotiation: float = 5e-4, ranks: int = 4) -> Link:
    collectives = [
        Collective(name, number_format, alpha, beta, 0.01, (Point(1024, 1, 1e-3, 9e-4, 2e-3, 5),))
        for name in COLLECTIVES
        for number_format in ("float32", "float16")
    ]
    compute = Compute(to_dict(MODEL), "adam", 4, 16, 4, forward=0.01, backward=0.02, backward_base=0.0, update=0.005)
    return Link(
        ranks, 2, "Gloo", "torch", "torch on cpu", "0.28.1", "a processor", 1, "2026-11-26T00:00:00+00:00", negotiation,
        tuple(collectives), compute,
    )  # fmt: skip


def of(link: Link, work: Work = WORK, ranks: int = 4) -> Prediction:
    return predict(link, "torch", work, TopologyConfig(), ranks)


# --- closed forms ----------------------------------------------------------------------------------------


def test_a_ring_is_that_of_the_hand() -> None:
    """8 ranks, 100 MB, 1 Gbit/s, 50 us: 14 steps; 2 * 7/8 * 100 MB = 175 MB at 125 MB/s."""
    assert ring.ring(8).seconds(100e6, 50e-6, 8e-9) == pytest.approx(14 * 50e-6 + 1.4)


def test_doubling_and_halving_are_those_of_the_hand() -> None:
    """8 ranks: 3 exchanges of all; or 3 of halves, quarters, eighths, and back."""
    assert ring.recursive_doubling(8).seconds(1000, 1, 0.01) == pytest.approx(3 * (1 + 10))
    assert ring.halving_doubling(8).seconds(1000, 1, 0.01) == pytest.approx(6 + 2 * (500 + 250 + 125) * 0.01)
    # 6 ranks fold two of them into the others, and out again.
    assert ring.recursive_doubling(6).seconds(1000, 1, 0.01) == pytest.approx(4 * 11)


def test_hierarchy_is_that_of_the_hand() -> None:
    """2 hosts of 4: 3 steps of a quarter in each host, a ring of two that carries all bytes, 3 steps of a quarter."""
    inside, between = (1e-5, 1e-10), (1e-4, 1e-8)
    seconds = ring.hierarchical_seconds(1e8, 2, 4, inside, between)
    assert seconds == pytest.approx(2 * (3e-5 + 0.75 * 1e8 * 1e-10) + 2e-4 + 1e8 * 1e-8)
    assert ring.hierarchical_seconds(1e8, 2, 1, inside, between) == pytest.approx(ring.ring(2).seconds(1e8, *between))
    assert ring.hierarchical_seconds(1e8, 1, 4, inside, between) == pytest.approx(ring.ring(4).seconds(1e8, *inside))


@pytest.mark.parametrize(
    ("size", "images_a_second", "published"),
    [(95e6, 142.0, 0.90), (170e6, 1656.82 / 16, 0.90), (528e6, 154.0, 0.68)],
    ids=["Inception V3", "ResNet-101", "VGG-16"],
)
def test_published_efficiencies_are_between_no_overlap_and_all_of_it(size: float, images_a_second: float, published: float) -> None:
    """Horovod's benchmark on 512 GPUs at 25 Gbit/s, 64 images each (docs/communication-model.md tells the figures' origin)."""
    compute, beta = 64 / images_a_second, 8 / 25e9
    service = ring.ring(512).seconds(size, 0, beta)
    assert service == pytest.approx(2 * 511 / 512 * size / 3.125e9)
    # Two thirds are backward, at whose beginning no gradient is ready yet: the best case.
    hidden = served_in_turn([Sent("all", compute / 3, size, "float32")], lambda size, *_: ring.ring(512).seconds(size, 0, beta))
    assert compute / (compute + service) < published < compute / max(compute, hidden)
    # Chosen to fit: two thirds are not hidden.
    assert compute / (compute + service * 2 / 3) == pytest.approx(published, abs=0.04)


@pytest.mark.parametrize(
    ("model", "item", "compute", "hides", "least", "most"),
    [
        (ModelConfig(vocabulary_size=10_000), 4, 2_560 / 41_361, 0.4, 0.47, 0.54),
        (ModelConfig(vocabulary_size=10_000), 2, 2_560 / 41_361, 0.4, 0.64, 0.78),
        (ModelConfig(vocabulary_size=10_000), 4, 81_920 / 392_038, 0.1, 0.75, 0.79),
        (ModelConfig(vocabulary_size=10_000), 2, 81_920 / 392_038, 0.1, 0.86, 0.91),
        (MLSTM_4096, 4, 65_536 / 65_000, 1.0, 0.82, 1.0),
        (MLSTM_4096, 2, 65_536 / 65_000, 1.0, 0.90, 1.0),
    ],
)
def test_models_of_ours_on_128_workers(
    model: ModelConfig, item: int, compute: float, hides: float, least: float, most: float
) -> None:
    """At 25 Gbit/s, as docs/communication-model.md tells; of what `hides`, two thirds are backward."""
    size = item * sum(math.prod(parameter.shape) for parameter in parameters(model).values())
    service = ring.ring(128).seconds(size, 0, 8 / 25e9)
    assert compute / (compute + service) == pytest.approx(least, abs=0.005)
    assert compute / (compute + max(0.0, service - hides * compute * 2 / 3)) == pytest.approx(most, abs=0.005)


@given(st.integers(2, 600), st.floats(1, 1e9), st.floats(0, 0.1), st.floats(1e-12, 1e-6))
def test_no_all_reduce_is_below_the_bandwidth_bound(ranks: int, size: float, alpha: float, beta: float) -> None:
    bound = bandwidth_bound(size, ranks, beta) * (1 - 1e-12)
    for algorithm in (ring.ring, ring.recursive_doubling, ring.halving_doubling):
        assert algorithm(ranks).seconds(size, alpha, beta) >= bound
    assert ring.ring(ranks).seconds(size, 0, beta) == pytest.approx(bound)


@given(st.sampled_from(COLLECTIVES), st.integers(1, 600), st.floats(0, 1e9), st.floats(0, 0.1), st.floats(0, 1e-6))
def test_collectives_grow_with_ranks_bytes_and_latency(name: Any, ranks: int, size: float, alpha: float, beta: float) -> None:
    here = course(name, ranks).seconds(size, alpha, beta)
    assert course(name, ranks + 1).seconds(size, alpha, beta) >= here
    assert course(name, ranks).seconds(size + 1000, alpha, beta) >= here
    assert course(name, ranks).seconds(size, alpha + 1e-3, beta) >= here
    assert course(name, 1).seconds(size, alpha, beta) == 0


# --- simulation ------------------------------------------------------------------------------------------

BY_BYTES = 1e-6


def by_bytes(size: float, *_: Any) -> float:
    return size * BY_BYTES


def sent(*pairs: tuple[float, float]) -> list[Sent]:
    return [Sent(str(index), ready, size, "float32") for index, (ready, size) in enumerate(pairs)]


def test_the_simulation_is_that_of_the_hand() -> None:
    """Ready at 0, 1 and 1 s, of 2 s each; negotiation 0.5 s: the first from 0.5 to 2.5, then one turn for both, from 3 on."""
    found = simulate(sent((0, 2e6), (1, 2e6), (1, 2e6)), by_bytes, negotiation=0.5)
    assert [(served.begun, served.done) for served in found] == [(0.5, 2.5), (3.0, 5.0), (5.0, 7.0)]


def test_a_turn_waits_for_its_cycle() -> None:
    found = simulate(sent((0, 1e5), (0.5, 1e5)), by_bytes, cycle=2.0)
    assert [served.begun for served in found] == [0.0, 2.0]


def test_neighbours_are_fused_up_to_a_size() -> None:
    tensors = [*sent((0, 10), (0, 10), (0, 10)), Sent("half", 0, 4, "float16"), Sent("late", 5, 1, "float16")]
    found = simulate(tensors, by_bytes, fusion_bytes=20)
    assert [served.tensors for served in found] == [("0", "1"), ("2",), ("half",), ("late",)]


TENSORS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e6)), min_size=1, max_size=12)


@given(TENSORS, st.floats(1e-3, 1), st.floats(1e-3, 1))
def test_the_simulation_is_the_closed_form_in_the_limit(pairs: list[tuple[float, float]], negotiation: float, cycle: float) -> None:
    """Without what Horovod adds it is the same; with it, each tensor waits for one cycle and one negotiation of its own at most."""
    tensors = sent(*pairs)
    closed = served_in_turn(tensors, by_bytes)
    assert simulate(tensors, by_bytes)[-1].done == pytest.approx(closed)
    added = simulate(tensors, by_bytes, negotiation=negotiation, cycle=cycle)[-1].done
    most = served_in_turn(tensors, lambda size, *_: size * BY_BYTES + negotiation + cycle)
    assert closed + negotiation <= added * (1 + 1e-9)
    assert added <= most * (1 + 1e-9)
    assert added >= sum(size for _, size in pairs) * BY_BYTES


@given(TENSORS, st.data())
def test_the_simulation_grows_with_bytes(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    """Without negotiation; with it a tensor that comes late may share a turn."""
    more = [(ready, size + data.draw(st.floats(0, 1e6))) for ready, size in pairs]
    assert simulate(sent(*more), by_bytes)[-1].done >= simulate(sent(*pairs), by_bytes)[-1].done * (1 - 1e-12)


@given(TENSORS)
def test_one_is_served_at_a_time(pairs: list[tuple[float, float]]) -> None:
    found = simulate(sent(*pairs), by_bytes, negotiation=0.01, cycle=0.05)
    assert len(found) == len(pairs)
    assert all(before.done <= after.begun for before, after in pairwise(found))
    ready = {str(index): ready for index, (ready, _) in enumerate(pairs)}
    assert all(served.begun >= ready[name] for served in found for name in served.tensors)


# --- what is sent ----------------------------------------------------------------------------------------


def test_gradients_leave_from_above_and_are_all_there() -> None:
    found = gradients(MODEL, WORK.data, WORK.communication, 2, backward=1.0)
    assert [one.ready for one in found] == sorted(one.ready for one in found)
    assert found[0].name == "touched_rows"
    assert [one.name for one in found[1:4]] == ["loss", "gradient.output_kernel", "gradient.output_bias"]
    assert (found[-1].name, found[-1].ready) == ("gradient.embedding", pytest.approx(1.0))
    sizes = {one.name.removeprefix("gradient."): one.size for one in found if one.name.startswith("gradient.")}
    assert sizes.keys() == parameters(MODEL).keys()
    dense = {name: 4 * math.prod(one.shape) for name, one in parameters(MODEL).items() if name != "embedding"}
    assert dense == {name: size for name, size in sizes.items() if name != "embedding"}
    assert sizes["embedding"] == pytest.approx(4 * 24 * distinct_words(1000, 2 * 4 * 16 * 4))
    # The output's six multiplications a weight and token, of all.
    layers = 4 * (4 * 32 * (24 + 32) + 4 * 32 * 64)
    assert found[2].ready == pytest.approx(6 * 32_000 / (6 * 32_000 + layers))


def test_halves_are_half_as_many_bytes() -> None:
    halved = replace(WORK.communication, compression="fp16")
    for full, half in zip(
        gradients(MODEL, WORK.data, WORK.communication, 2, 1.0), gradients(MODEL, WORK.data, halved, 2, 1.0), strict=True
    ):
        assert full.size == (2 * half.size if full.name.startswith("gradient") else half.size)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(vocabulary_size=500, embedding_size=32, hidden_size=32, tie_embedding=True, dropout=0.5),
        ModelConfig(vocabulary_size=500, embedding_size=16, hidden_size=(8, 16, 32), cell="mlstm"),
        ModelConfig(vocabulary_size=500, embedding_size=16, hidden_size=32, projection_size=8, softmax="sampled", sampled_words=50),
        ModelConfig(vocabulary_size=500, embedding_size=16, hidden_size=32, softmax="adaptive", adaptive_cutoffs=(50, 200)),
    ],
    ids=["tied", "mlstm", "sampled", "adaptive"],
)
def test_each_parameter_travels_once(model: ModelConfig) -> None:
    found = gradients(model, WORK.data, WORK.communication, 2, 1.0)
    names = [one.name.removeprefix("gradient.") for one in found if one.name.startswith("gradient.")]
    assert sorted(names) == sorted(parameters(model))
    shapes = {name: 4 * math.prod(one.shape) for name, one in parameters(model).items()}
    assert all(0 < one.size <= shapes[one.name[9:]] for one in found if one.name.startswith("gradient."))


def test_distinct_words_are_counted() -> None:
    generator = np.random.default_rng(1)
    drawn = np.minimum(np.expm1(generator.random((200, 300)) * math.log(1001)).astype(int), 999)
    assert distinct_words(1000, 300) == pytest.approx(np.mean([len(np.unique(row)) for row in drawn]), rel=0.02)


# --- steps -----------------------------------------------------------------------------------------------


def test_a_step_on_one_rank_is_its_compute() -> None:
    found = of(a_link(), ranks=1)
    assert found.step_seconds == pytest.approx(4 * 0.03 + 0.005)
    assert (found.exposed_seconds, found.communication_seconds, found.sent_bytes, found.operations) == (0, 0, 0, ())
    assert found.scaling_efficiency == 1


def test_a_window_has_as_many_backwards_as_it_takes() -> None:
    """Of 6 micro-batches 4 may share one: the first has 2, the last 4."""
    link = a_link(beta=0, alpha=0)
    assert link.compute is not None
    based = replace(link, compute=replace(link.compute, backward_base=0.1))
    six = CommunicationConfig(backward_passes_per_step=6, backward_tokens=4 * 4 * 16)
    found = of(based, replace(WORK, communication=six))
    assert found.backward_seconds == pytest.approx(2 * 0.1 + 6 * 0.02)
    assert found.last_backward_seconds == pytest.approx(0.1 + 4 * 0.02)
    assert of(based, replace(WORK, communication=replace(six, backward_tokens=1))).last_backward_seconds == pytest.approx(0.12)


@pytest.mark.parametrize(
    ("alone", "several", "base", "each"),
    [(3.0, 9.0, 1.0, 2.0), (2.0, 8.0, 0.0, 2.0), (1.0, 9.0, 0.0, 2.25), (3.0, 2.0, 3.0, 0.0)],
)
def test_what_a_backward_takes_is_told_from_what_each_micro_batch_takes(
    alone: float, several: float, base: float, each: float
) -> None:
    assert line(alone, several, 4) == pytest.approx((base, each))


def test_a_step_is_the_sum_of_its_parts() -> None:
    found = of(a_link(beta=1e-6))
    assert found.exposed_seconds > 0
    parts = (found.forward_seconds, found.backward_seconds, found.exposed_seconds, found.update_seconds)
    assert found.step_seconds == pytest.approx(sum(parts))
    assert found.hidden_seconds + found.exposed_seconds >= found.communication_seconds
    assert found.tokens_per_second == pytest.approx(4 * 4 * 16 * 4 / found.step_seconds)
    assert found.exposed_seconds >= found.closed_form_exposed_seconds


def test_a_link_without_latency_and_limit_hides_all_but_the_last_negotiation() -> None:
    found = of(a_link(alpha=0, beta=0, negotiation=0.003))
    assert found.exposed_seconds == pytest.approx(0.003)


@given(st.floats(0, 1e-2), st.floats(1e-12, 1e-5), st.floats(0, 1e-2), st.integers(2, 300))
def test_a_step_is_never_below_its_bounds(alpha: float, beta: float, negotiation: float, ranks: int) -> None:
    found = of(a_link(alpha, beta, negotiation), ranks=ranks)
    compute = 4 * 0.03 + 0.005
    assert found.step_seconds >= compute
    assert found.communication_seconds >= found.bandwidth_bound_seconds * (1 - 1e-9)
    before_the_last_backward = compute - 0.005 - found.last_backward_seconds
    assert found.step_seconds >= before_the_last_backward + found.bandwidth_bound_seconds * (1 - 1e-9)
    assert found.exposed_seconds >= found.closed_form_exposed_seconds - 1e-12


@given(st.floats(0, 1e-2), st.floats(1e-12, 1e-5), st.floats(1, 10), st.integers(2, 300))
def test_a_step_grows_with_latency_bytes_and_ranks(alpha: float, beta: float, factor: float, ranks: int) -> None:
    """Up to what a tensor saves that shares a turn: a negotiation and a cycle for each."""
    link = a_link(alpha, beta, negotiation=1e-4)
    here = of(link, ranks=ranks)
    saved = len(here.operations) * (1e-4 + HOROVODS_CYCLE)
    for other in (
        of(a_link(alpha * factor, beta, 1e-4), ranks=ranks),
        of(a_link(alpha, beta * factor, 1e-4), ranks=ranks),
        of(link, ranks=ranks + 1),
    ):
        assert other.step_seconds >= here.step_seconds - saved
        assert other.closed_form_exposed_seconds >= here.closed_form_exposed_seconds - 1e-12


def test_accumulation_hides_no_more_but_costs_less_often() -> None:
    slow = a_link(beta=1e-6)
    few = of(slow, replace(WORK, communication=CommunicationConfig(backward_passes_per_step=4)))
    many = of(slow, replace(WORK, communication=CommunicationConfig(backward_passes_per_step=16)))
    assert many.scaling_efficiency > few.scaling_efficiency


def test_halves_take_less_on_a_slow_link() -> None:
    halved = replace(WORK, communication=CommunicationConfig(backward_passes_per_step=4, compression="fp16"))
    assert of(a_link(beta=1e-6), halved).exposed_seconds < 0.6 * of(a_link(beta=1e-6)).exposed_seconds


# --- fits ------------------------------------------------------------------------------------------------


def test_a_fit_finds_what_made_the_times_in_spite_of_outliers() -> None:
    generator = np.random.default_rng(3)
    sizes = np.repeat(1024.0 * 4.0 ** np.arange(10), 3)
    terms = np.stack((np.ones_like(sizes), sizes), axis=1)
    seconds = terms @ [2e-4, 1e-9] * generator.normal(1, 0.02, len(sizes))
    seconds[::7] *= 5
    found = fit(terms, seconds)
    assert found.coefficients == pytest.approx([2e-4, 1e-9], rel=0.05)
    assert found.error < 0.05


def test_a_mean_is_of_the_middle() -> None:
    repeats = np.array([[1.0, 5.0], *[[2.0, 6.0]] * 4, *[[4.0, 6.0]] * 4, [99.0, 6.0]])
    assert middle_mean(repeats).tolist() == [3.0, 6.0]
    assert middle_mean(repeats[:3]).tolist() == pytest.approx([5 / 3, 17 / 3])


def test_a_fit_has_nothing_below_zero() -> None:
    """Times that fall with the size are no bandwidth."""
    sizes = np.array([1.0, 2.0, 3.0])
    assert fit(np.stack((np.ones(3), sizes), axis=1), np.array([3.0, 2.0, 1.0])).coefficients.min() == 0


def points(name: Any, negotiation: float, alpha: float, beta: float, ranks: int, counts: tuple[int, ...] = (1,)) -> list[Point]:
    its = course(name, ranks)
    made = []
    for size, count in [*((1024 * 4**power, 1) for power in range(9)), *((1024, count) for count in counts)]:
        seconds = negotiation + count * its.seconds(size, alpha, beta)
        made.append(Point(size, count, seconds, seconds, seconds, 3))
    return made


def test_more_ranks_negotiate_longer() -> None:
    """Around a ring over Gloo, through a tree over MPI."""
    link = a_link(negotiation=0.03)
    assert [link.negotiation(ranks) for ranks in (1, 2, 4, 64)] == pytest.approx([0, 0.01, 0.03, 0.63])
    tree = replace(link, controller="MPI")
    assert [tree.negotiation(ranks) for ranks in (1, 2, 4, 64)] == pytest.approx([0, 0.015, 0.03, 0.09])


def test_negotiation_is_told_from_latency() -> None:
    measured = {(name, "float32"): points(name, 1e-3, 5e-5, 2e-9, 4, (2, 8, 32)) for name in COLLECTIVES}
    negotiation, found = fitted(measured, 4)
    assert negotiation == pytest.approx(1e-3, rel=1e-6)
    for its in found:
        assert (its.alpha, its.beta) == (pytest.approx(5e-5, rel=1e-3), pytest.approx(2e-9, rel=1e-3))
        assert its.error < 1e-3


# --- files, and what does not fit ------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A link, and the run that its compute is of."""
    write_link(a_link(), tmp_path / "link.json")
    (tmp_path / "run.yaml").write_text(
        "vocabulary_size: 1000\nembedding_size: 24\nhidden_size: 32\n"
        "batch_size: 4\nsequence_length: 16\nbackward_passes_per_step: 4\n"
    )
    return tmp_path / "link.json", tmp_path / "run.yaml"


def test_a_link_is_read_as_it_was_written(files: tuple[Path, Path]) -> None:
    assert read_link(files[0]) == a_link()


@given(st.integers(0, 3000))
def test_a_link_that_is_cut_is_refused(tmp_path_factory: pytest.TempPathFactory, end: int) -> None:
    path = tmp_path_factory.getbasetemp() / "link.json"
    write_link(a_link(), path)
    path.write_text(path.read_text()[:end])
    with pytest.raises(DataError, match=r"^--link [^\n]*link.json is cut off or no JSON: write one [^\n]*$"):
        read_link(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(format=2), "another format"),
        (lambda values: values.pop("format"), "is no file of hvd-lm measure"),
        (lambda values: values.pop("ranks"), "ranks is missing"),
        (lambda values: values.update(ranks="4"), "ranks is '4'"),
        (lambda values: values.update(ranks=1), "ranks is 1"),
        (lambda values: values.update(negotiation_seconds=-1), "negotiation_seconds is -1"),
        (lambda values: values.update(negotiation_seconds=float("nan")), "negotiation_seconds is nan"),
        (lambda values: values.update(collectives={}), "collectives is no list"),
        (lambda values: values["collectives"][0].update(name="shout"), "no collective is called 'shout'"),
        (lambda values: values["collectives"][0]["points"][0].pop("size"), "size is missing"),
        (lambda values: values.update(compute=3), "Compute is no object"),
    ],
)
def test_a_damaged_link_is_refused(files: tuple[Path, Path], change: Callable[[dict[str, Any]], object], said: str) -> None:
    values = json.loads(files[0].read_text())
    change(values)
    files[0].write_text(json.dumps(values))
    with pytest.raises(DataError) as caught:
        read_link(files[0])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def refused(capsys: pytest.CaptureFixture[str], files: tuple[Path, Path], *flags: str) -> str:
    link, run = files
    assert main(["predict", "--link", str(link), "--config", str(run), *(flags or ("--ranks", "4"))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("framework: tensorflow", "measured with torch, and the run is in tensorflow: measure with --framework tensorflow"),
        ("layers: 3", "timed with layers 2, and the run has 3: measure again, with --config of this run"),
        ("optimizer: sgd", "timed with optimizer adam, and the run has sgd: measure again"),
        ("reduction: adasum", "--reduction adasum is not predicted yet"),
        ("hierarchical_allreduce: true", "--hierarchical-allreduce is not predicted yet"),
    ],
)
def test_a_run_that_the_link_does_not_know_is_refused(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], settings: str, said: str
) -> None:
    files[1].write_text(files[1].read_text() + settings + "\n")
    assert said in refused(capsys, files)


def test_a_link_without_compute_or_operation_is_refused(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write_link(replace(a_link(), compute=None), files[0])
    assert "knows no model's compute: measure again, with --config" in refused(capsys, files)
    write_link(replace(a_link(), collectives=()), files[0])
    assert "allreduce was not measured: measure it again" in refused(capsys, files)


def test_bad_flags_are_refused(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--ranks must be at least 1, not 0" in refused(capsys, files, "--ranks", "0")
    assert "--ranks must be given" in refused(capsys, files, "--json")
    assert main(["measure"]) == 2
    assert "one rank has no link to measure: start 2 or more" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the topology does not fit 3"):
        predict(a_link(), "torch", WORK, TopologyConfig(model_parallel=2), 3)


def test_other_hardware_is_told(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--link", str(files[0]), "--config", str(files[1]), "--ranks", "4"]) == 0
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert "the link was measured on a processor, and this is " in line
    assert "a step on 4 rank(s): " in said.out


def test_command_prints_words_or_json(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--link", str(files[0]), "--config", str(files[1]), "--ranks", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = json.loads(json.dumps(of(a_link(), ranks=8).to_dict()))
    assert found == expected
    assert main(["predict", "--link", str(files[0]), "--config", str(files[1]), "--ranks", "8"]) == 0
    assert "extrapolated by the closed forms" in capsys.readouterr().out


def test_a_target_batch_is_shared_by_the_ranks(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = WORK.data.batch_size * WORK.data.sequence_length
    (tmp_path / "run.yaml").write_text(f"{files[1].read_text()}\ntarget_batch: {8 * 6 * tokens}\n")
    assert main(["predict", "--link", str(files[0]), "--config", str(tmp_path / "run.yaml"), "--ranks", "8", "--json"]) == 0
    work = replace(WORK, communication=replace(WORK.communication, backward_passes_per_step=6))
    assert json.loads(capsys.readouterr().out)["step_seconds"] == of(a_link(), work, ranks=8).step_seconds


# --- PowerSGD --------------------------------------------------------------------------------------------

POWERSGD = replace(WORK, communication=CommunicationConfig(backward_passes_per_step=4, compression="powersgd", powersgd_rank=2))


def test_a_matrix_travels_as_two_messages() -> None:
    """Of m rows and n columns 2 m, then 2 n values; of the table's rows those that are touched; biases as they are."""
    found = {one.name.removeprefix("gradient."): one for one in gradients(MODEL, WORK.data, POWERSGD.communication, 2, 1.0)}
    assert (found["output_kernel"].size, found["output_kernel"].second) == (4 * 2 * 1000, 4 * 2 * 32)
    assert found["output_kernel"].compressed == 32_000
    rows = distinct_words(1000, 2 * 4 * 16 * 4)
    assert (found["embedding"].size, found["embedding"].second) == (pytest.approx(4 * 2 * rows), 4 * 2 * 24)
    assert (found["output_bias"].size, found["output_bias"].second) == (4 * 1000, 0)


def test_what_is_compressed_is_what_the_compressor_compresses() -> None:
    model = replace(MODEL, hidden_size=(3, 32), vocabulary_size=50)
    found = gradients(model, WORK.data, POWERSGD.communication, 2, 1.0)
    compressor = PowerSGD(2)
    for name, parameter in parameters(model).items():
        (its,) = (one for one in found if one.name == f"gradient.{name}")
        assert bool(its.second) == (compressor.first(name, parameter.shape) is not None)


def test_compression_takes_its_passes_and_products() -> None:
    """Eight passes over the values at the update's pace, 4 r products of few columns, each twice what the model's take."""
    link = a_link(alpha=0, beta=0, negotiation=0)
    shapes = {name: one.shape for name, one in parameters(MODEL).items()}
    values = sum(math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and name != "embedding")
    values += distinct_words(1000, 4 * 4 * 16 * 4) * 24
    all_values = sum(map(math.prod, shapes.values()))
    a_pass = 0.005 / (10 * all_values)
    a_product = 2 * 0.03 / (3 * 64 * (32_000 + 128 * 56 + 128 * 64))
    found = of(link, POWERSGD)
    assert found.compression_seconds == pytest.approx(values * (8 * a_pass + 8 * a_product))
    assert found.step_seconds == pytest.approx(4 * 0.03 + 0.005 + found.compression_seconds + found.exposed_seconds)
    assert found.scaling_efficiency == pytest.approx(0.125 / found.step_seconds)
    assert of(link, POWERSGD, ranks=1).compression_seconds == 0


def test_the_second_message_leaves_when_the_first_is_back() -> None:
    """One matrix, ready at 1 s when the backward ends; compression 4, 1 and 3 s of passes; messages of 1 and 2 s; a negotiation of
    0.5 s before each: 1 + 4, then 0.5 + 1 of P, 1 to make Q, 0.5 + 2 of Q, 3 to decompress."""
    thread = HorovodsThread(by_bytes, negotiation=0.5)
    one = Sent("g", 1.0, 1e6, "float32", compressed=1.0, second=2e6)
    window = simulate_compressed([one], thread, Pace(one_pass=1.0, multiplication=0.0), 4, backward=1.0)
    assert [(served.tensors, served.begun, served.done) for served in thread.operations] == [
        (("g",), 5.5, 6.5),
        (("g.second",), 8.0, 10.0),
    ]
    assert (window.end, window.compression) == (13.0, 8.0)


def test_a_sum_that_is_back_is_seen_when_the_next_gradient_is_complete() -> None:
    thread = HorovodsThread(by_bytes)
    pair = [Sent("a", 0.0, 1e6, "float32", compressed=0.1, second=1e6), Sent("b", 5.0, 1e6, "float32")]
    window = simulate_compressed(pair, thread, Pace(one_pass=1.0, multiplication=0.0), 1, backward=6.0)
    # Compressed until 0.4; back at 1.4; seen at 5.4; Q made until 5.5, on its way until 6.5, and b behind it.
    assert [(served.tensors[0], served.begun) for served in thread.operations] == [
        ("a", pytest.approx(0.4)), ("a.second", pytest.approx(5.5)), ("b", pytest.approx(6.5)),
    ]  # fmt: skip
    assert window.compression == pytest.approx(0.8)
    assert window.end == pytest.approx(7.5)


@given(TENSORS, st.floats(1e-3, 1), st.floats(1e-3, 1))
def test_without_compression_a_window_ends_with_its_last_tensor(
    pairs: list[tuple[float, float]], negotiation: float, cycle: float
) -> None:
    thread = HorovodsThread(by_bytes, negotiation=negotiation, cycle=cycle)
    window = simulate_compressed(sent(*pairs), thread, Pace(1, 1), 4, backward=0.0)
    assert tuple(thread.operations) == simulate(sent(*pairs), by_bytes, negotiation=negotiation, cycle=cycle)
    assert window == Window(thread.operations[-1].done, 0.0)


@given(st.floats(0, 1e-3), st.floats(1e-12, 1e-5), st.floats(0, 1e-2), st.integers(2, 300))
def test_powersgd_is_never_below_its_bounds(alpha: float, beta: float, negotiation: float, ranks: int) -> None:
    found = of(a_link(alpha, beta, negotiation), POWERSGD, ranks)
    assert found.exposed_seconds >= found.closed_form_exposed_seconds - 1e-12
    assert found.communication_seconds >= found.bandwidth_bound_seconds - 1e-12
    # Two messages one after the other: the embedding's are not hidden by anything but its own compression.
    assert found.exposed_seconds + found.compression_seconds >= 4 * (ranks - 1) * alpha + 2 * negotiation * (ranks - 1) / 3


def test_powersgd_sends_less_and_is_for_slow_links() -> None:
    slow, fast = a_link(beta=1e-6), a_link(alpha=1e-7, beta=1e-12, negotiation=1e-6)
    halved = replace(WORK, communication=CommunicationConfig(backward_passes_per_step=4, compression="fp16"))
    assert of(slow, POWERSGD).sent_bytes < 0.5 * of(slow, halved).sent_bytes
    assert of(slow, POWERSGD).step_seconds < of(slow, halved).step_seconds < of(slow).step_seconds
    assert of(fast).step_seconds < of(fast, POWERSGD).step_seconds


def test_words_tell_what_compression_takes(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    files[1].write_text(files[1].read_text() + "compression: powersgd\n")
    assert main(["predict", "--link", str(files[0]), "--config", str(files[1]), "--ranks", "4"]) == 0
    assert "\n  compression  " in capsys.readouterr().out


def test_a_link_of_an_older_version_knows_fewer_settings() -> None:
    """Of a model, whose settings it does not have are at their defaults."""
    link = a_link()
    assert link.compute is not None
    older = {name: value for name, value in link.compute.model.items() if name not in ("classes", "forget_bias")}
    old = replace(link, compute=replace(link.compute, model=older))
    assert of(old).step_seconds == of(link).step_seconds
    with pytest.raises(ConfigError, match=r"timed with forget_bias 0\.0, and the run has 1\.0"):
        of(old, replace(WORK, model=replace(MODEL, forget_bias=1.0)))
