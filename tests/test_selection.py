"""Selectors (Deep Gradient Compression): what they do in NumPy, that frameworks do the same, and that ranks stay together."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_compression import assert_close, functions_of, losses, normal, train

from hvd_lm import CommunicationConfig, ModelConfig, RunConfig, TopK, TopologyConfig
from hvd_lm import checkpoint as checkpoints
from hvd_lm import train as train_run
from hvd_lm.compression import kept
from hvd_lm.compression.selectors import SMALLEST_SAMPLE, largest
from hvd_lm.errors import ConfigError
from hvd_lm.job.topology import Topology
from hvd_lm.model.split import whole
from hvd_lm.model.stages import parameters

Matrix = NDArray[np.float32]


def sizes_at(matrix: Matrix, places: Any) -> Matrix:
    """In the order of size; fails unless all places differ."""
    assert len(np.unique(places)) == len(places)
    return np.sort(np.abs(matrix).ravel()[np.asarray(places)])


def expected_sizes(matrix: Matrix, count: int) -> Matrix:
    return np.sort(np.abs(matrix).ravel())[matrix.size - count :]


# --- NumPy -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(1, 3), (7, 9), (60, 40), (300, 256), (129, 510), (50,), (20_000,)]),
    share=st.floats(0.0001, 1),
    levels=st.sampled_from([1, 2, 5, 1000]),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_exactly_so_many_and_the_largest(shape: tuple[int, ...], share: float, levels: int, zeros: float, seed: int) -> None:
    """Whatever the values: many alike, or hardly any that is not 0."""
    generator = np.random.default_rng(seed)
    matrix = np.float32(generator.integers(-levels, levels + 1, shape) * (generator.random(shape) >= zeros))
    count = math.ceil(share * matrix.size)
    np.testing.assert_array_equal(sizes_at(matrix, largest(np, matrix, count)), expected_sizes(matrix, count))


SHAPE = (400, 512)
assert math.prod(SHAPE) > 8 * SMALLEST_SAMPLE, "a sample is taken"


def counting() -> tuple[Any, list[int]]:
    """NumPy, and how many values were sorted at a time."""
    lengths: list[int] = []

    def argsort(values: Any) -> Any:
        lengths.append(len(values))
        return np.argsort(values)

    names = ("abs", "reshape", "take", "where", "count_nonzero")
    return SimpleNamespace(argsort=argsort, **{name: getattr(np, name) for name in names}), lengths


def test_few_are_sorted() -> None:
    xp, lengths = counting()
    # Columns of very different sizes, such as those of a kernel: a sample of some columns alone would mislead.
    matrix = normal(*SHAPE) * np.float32(1.02) ** np.arange(SHAPE[1], dtype=np.float32)
    np.testing.assert_array_equal(sizes_at(matrix, largest(xp, matrix, 400)), expected_sizes(matrix, 400))
    sample, candidates = lengths
    assert sample < 1.2 * SMALLEST_SAMPLE
    assert 400 <= candidates < 1000


def test_a_sample_that_misleads_is_noticed() -> None:
    """All that is large is in the sample."""
    xp, lengths = counting()
    largest(xp, normal(*SHAPE), 400)
    stride = -(-math.prod(SHAPE) // lengths[0])
    matrix = normal(*SHAPE)
    matrix.ravel()[::stride] *= 100
    found = largest(xp, matrix, 20_000)
    np.testing.assert_array_equal(sizes_at(matrix, found), expected_sizes(matrix, 20_000))
    assert lengths[-1] == matrix.size


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_what_is_not_finite_does_not_change_how_many(bad: float, everywhere: bool) -> None:
    matrix = normal(*SHAPE)
    matrix[:: 1 if everywhere else 17] = bad
    assert len(np.unique(largest(np, matrix, 300))) == 300


def step(selector: TopK, gradient: Matrix, has: Matrix, velocity: Matrix, number: int) -> Matrix:
    """What a rank sends; `has` and `velocity` become what they are after it."""
    velocity *= selector.momentum
    velocity += gradient
    has += velocity if selector.momentum else gradient
    places = selector.select(np, has, selector.count("a", gradient.shape, number))
    sent = np.zeros_like(has)
    sent.ravel()[places] = has.ravel()[places]
    has.ravel()[places] = velocity.ravel()[places] = 0
    return sent


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.001, 0.49), start_steps=st.integers(0, 12), seed=st.integers(0, 2**32))
def test_what_is_sent_and_what_is_kept_are_the_gradients(share: float, start_steps: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    selector, asked, sent = TopK(share, start_steps=start_steps), np.zeros((30, 20)), np.zeros((30, 20))
    has, velocity = np.zeros((2, 30, 20), np.float32)
    for number in range(10):
        gradient = generator.standard_normal((30, 20), np.float32)
        asked += gradient
        sent += step(selector, gradient, has, velocity, number)
        np.testing.assert_allclose(sent + has, asked, atol=1e-5)


def test_with_momentum_a_gradient_counts_as_often_as_in_sgd() -> None:
    """Lin et al. 2018, section 3.2: what was not sent when the gradients end is sent as if it had been there all along."""
    selector, gradient = TopK(0.1, momentum=0.5), normal(30, 20)
    has, velocity = np.zeros((2, 30, 20), np.float32)
    has_all = np.zeros_like(has)
    first = step(selector, gradient, has, velocity, 0)
    has_all += first
    for _ in range(60):
        has_all += step(selector, np.zeros_like(gradient), has, velocity, 0)
    held_back = first == 0
    assert np.abs(has_all / gradient)[held_back].min() > 1.0, "its momentum came along"
    assert np.abs(has_all / gradient)[held_back].max() < 2.0 + 1e-5, "1 + 1/2 + 1/4 + ... at most"
    np.testing.assert_array_equal(has_all[~held_back], gradient[~held_back])  # masked: nothing of it is sent again


def test_share_1_is_exact() -> None:
    """All travels as it is; and what is selected of all is all."""
    shares = {name: whole(parameter) for name, parameter in parameters(ModelConfig(1000)).items()}
    for share in (0.5, 1.0):
        assert kept.firsts(TopK(share), shares, Topology(0, 2, 1)) == {}
    assert sorted(largest(np, normal(5, 7), 35)) == list(range(35))


def test_what_travels_as_it_is() -> None:
    selector = TopK(0.001)
    expected = {(8191,): 0, (8192,): 9, (1, 2): 0, (2, 2): 1, (1000, 100): 100, (1 << 16, 1 << 16): 0}
    assert {shape: selector.count("a", shape, 0) for shape in expected} == expected
    shares = {name: whole(parameter) for name, parameter in parameters(ModelConfig(1000)).items()}
    assert set(kept.firsts(selector, shares, Topology(0, 2, 1))) == {name for name in shares if not name.endswith("bias")}
    assert kept.firsts(selector, shares, Topology(0, 1, 1)) == {}


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.001, [0.25] * 2 + [1 / 16] * 2 + [1 / 64] * 2 + [1 / 256] * 2 + [0.001] * 2), (0.1, [0.25] * 2 + [0.1] * 8)],
)
def test_the_share_falls_by_four(share: float, expected: list[float]) -> None:
    selector = TopK(share, start_steps=8)
    assert [selector.share_at(step) for step in range(10)] == expected
    assert selector.count("a", (100, 64), 3) == math.ceil(expected[3] * 6400)
    assert TopK(share).share_at(0) == share
    assert [TopK(0.001, start_steps=1).share_at(step) for step in range(2)] == [0.25, 0.001]


def test_ranks_that_come_get_equal_parts_of_both() -> None:
    shares = {"a": whole(parameters(ModelConfig(5, embedding_size=3))["embedding"])}
    earlier = {f"{kind}/a": normal(2 * 5, 3, seed=seed) for seed, kind in enumerate(("kept", "velocity"))}
    for ranks in (2, 3):
        firsts = {"a": None}
        remembered = kept.remembered(TopK(0.1, momentum=0.9), firsts, shares, Topology(0, ranks, 1))
        assert remembered.keys() == earlier.keys()
        assert kept.remembered(TopK(0.1), firsts, shares, Topology(0, ranks, 1)).keys() == {"kept/a"}
        for name, rows in kept.fitted(earlier, remembered, firsts, shares).items():
            parts = [rows[start : start + 5] for start in range(0, 5 * ranks, 5)]
            np.testing.assert_allclose(sum(parts), earlier[name][:5] + earlier[name][5:], atol=1e-6)
            assert kept.is_remembered(name, rows.shape, (5, 3))


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("share", 0.0), ("share", 1.5), ("share", math.nan), ("momentum", 1.0), ("momentum", -0.1), ("start_steps", -1)],
)
def test_impossible_selectors_are_refused(name: str, value: Any) -> None:
    for make in (lambda: TopK(**{"share": 0.1, name: value}), lambda: CommunicationConfig(**{f"topk_{name}": value})):
        with pytest.raises(ConfigError, match=f"--topk-{name.replace('_', '-')} must") as caught:
            make()
        assert len(str(caught.value).splitlines()) == 1


TOPK = CommunicationConfig(compression="topk")


@pytest.mark.parametrize(
    "settings", [{"topology": TopologyConfig(model_parallel=2)}, {"topology": TopologyConfig(split="optimizer")}, {"elastic": True}]
)
def test_what_does_not_go_with_it(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--compression topk works on whole gradients") as caught:
        RunConfig(communication=TOPK, **settings)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="without elastic"):
        train_run(RunConfig(elastic=True), compressor=TopK(0.1))
    with pytest.raises(ConfigError, match="--reduction adasum works on full gradients"):
        CommunicationConfig(compression="topk", reduction="adasum")
    with pytest.raises(ConfigError, match="without --compression topk"):
        CommunicationConfig(compression="topk", gradient_predivide_factor=2.0)


# --- frameworks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 400, 100_000])
def test_a_framework_selects_what_numpy_does(framework: str, count: int) -> None:
    xp, array = functions_of(framework)
    matrix = normal(*SHAPE)
    assert set(np.asarray(largest(xp, array(matrix), count)).tolist()) == set(largest(np, matrix, count).tolist())
    matrix[5] = np.nan
    assert len(np.unique(np.asarray(largest(xp, array(matrix), count)))) == count


# --- ranks -----------------------------------------------------------------------------------------------

SHARE, MOMENTUM, CLIP = 0.02, 0.5, 0.1
"""Of tests/ranks/compressed.py."""


def checked_window(ranks: list[dict[str, Any]], memory: list[dict[str, Any]], names: list[str], share: float) -> None:
    """Compare what the ranks report of a window with the paper's, in float64; `memory` becomes what is after it."""
    own = [{name: np.array(values, np.float64) for name, values in rank["own"].items()} for rank in ranks]
    expected = {name: sum(of_rank[name] for of_rank in own) for name in own[0] if name not in names}
    sent = 4 * sum(values.size for values in expected.values())
    clipped = []
    for rank, (gradients, has) in enumerate(zip(own, memory, strict=True)):
        norm = math.sqrt(sum((gradients[name] ** 2).sum() for name in names))
        limit = CLIP / math.sqrt(len(ranks))
        clipped.append(norm > limit)
        for name in names:
            gradient = gradients[name] * min(1, limit / norm)
            has[f"velocity/{name}"] = velocity = MOMENTUM * has[f"velocity/{name}"] + gradient
            has[f"kept/{name}"] = whole = has[f"kept/{name}"] + velocity
            places = np.argsort(-np.abs(whole), axis=None)[: math.ceil(share * whole.size)]
            expected[name] = expected.get(name, np.zeros_like(whole))
            expected[name].ravel()[places] += whole.ravel()[places]
            whole.ravel()[places] = velocity.ravel()[places] = 0
            sent += 8 * len(places) if rank == 0 else 0
    assert any(clipped), "norms of ranks: what is clipped is seen"
    squares = sum(float((values**2).sum()) for values in expected.values())
    for rank, has in zip(ranks, memory, strict=True):
        assert rank["bytes"] == sent
        assert rank["norm"] == pytest.approx(math.sqrt(squares), rel=1e-4)
        assert rank["memory"].keys() == has.keys()
        for name, values in has.items():
            assert_close(rank["memory"][name], values, name)
        for name, values in expected.items():
            assert_close(rank["applied"][name], values, name)
    assert ranks[0]["applied"] == ranks[1]["applied"]
    assert ranks[0]["weights"] == ranks[1]["weights"]


@pytest.mark.ranks
def test_steps_of_two_ranks_are_those_of_the_paper(framework: str) -> None:
    """With Adagrad, which else updates the rows that the window touched; what is selected may be of any row."""
    results = pools.body("compressed", 2, framework, "topk", "adagrad")
    names = list(results[0]["firsts"])
    kernels = {f"lstm.{layer}.{kind}_kernel" for layer in range(2) for kind in ("input", "recurrent")}
    assert set(names) == {"embedding", "output_kernel", *kernels}
    shapes = {name: np.shape(results[0]["windows"][0]["own"][name]) for name in names}
    memory = [{f"{kind}/{name}": np.zeros(shape) for name, shape in shapes.items() for kind in kept.OF_A_RANK} for _ in range(2)]
    untouched = 0
    *windows, overflow = zip(*(result["windows"] for result in results), strict=True)
    for number, window in enumerate(windows):
        checked_window(list(window), memory, names, 0.25 if number == 0 else SHARE)
        assert all(rank["was_applied"] for rank in window)
        changed = np.flatnonzero(np.any(window[0]["applied"]["embedding"], axis=1)).tolist()
        assert window[0]["changed_rows"] == changed
        untouched += len({*changed} - {row for rank in window for row in np.flatnonzero(np.any(rank["own"]["embedding"], axis=1))})
    assert untouched, "some have rows that nobody looked up"
    for rank in overflow:
        assert not rank["was_applied"]
        assert not np.isfinite(rank["norm"])
        assert rank["weights"] == windows[-1][0]["weights"]
        assert not any(np.any(values) for values in rank["memory"].values()), "nothing of what is not finite stays"


START = (
    "--compression", "topk", "--topk-share", "0.02", "--topk-start-steps", "8", "--topk-momentum", "0.5", "--optimizer", "sgd",
    "--learning-rate", "1.0", "--softmax", "sampled", "--sampled-words", "300",
)  # fmt: skip
"""Rows are looked up on both sides."""


@pytest.mark.ranks
def test_a_run_that_stopped_goes_on_bit_for_bit_and_frameworks_agree(tmp_path: Path) -> None:
    first, other = INSTALLED[0], INSTALLED[-1]
    whole_run, parts = tmp_path / "whole", tmp_path / "parts"
    rows = train(2, first, whole_run, 30, *START)
    train(2, first, parts, 13, *START)
    resumed = train(2, first, tmp_path / "resumed", 30, *START, "--resume", str(parts))
    assert losses(resumed) == losses(launcher.metrics(whole_run))[13:]
    found, expected = checkpoints.load(tmp_path / "resumed"), checkpoints.load(whole_run)
    assert {name.partition("/")[0] for name in expected.memory} == {"kept", "velocity"}
    for of_found, of_expected in ((found.weights, expected.weights), (found.memory, expected.memory)):
        assert of_found.keys() == of_expected.keys()
        for name, array in of_expected.items():
            assert array.any()
            np.testing.assert_array_equal(of_found[name], array, err_msg=name)
    assert rows[-1]["validation_loss"] < math.log(1000) - 1
    assert rows[-1]["bytes_sent"] * 10 < rows[0]["bytes_sent"]
    if first != other:
        # From the start, and with what the first one has kept.
        again = train(2, other, tmp_path / "other", 30, *START)
        assert [row["bytes_sent"] for row in again] == [row["bytes_sent"] for row in rows]
        np.testing.assert_allclose(losses(again), losses(rows), rtol=1e-4)
