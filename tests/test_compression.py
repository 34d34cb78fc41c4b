"""Compressors: what they do in NumPy, that frameworks do the same, and that ranks which train with them stay together."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED
from grids import alone, assert_same_figures, on_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from saved import example, refusal, reseal

import hvd_lm
from hvd_lm import CommunicationConfig, ModelConfig, PowerSGD, RunConfig, TopologyConfig
from hvd_lm import checkpoint as checkpoints
from hvd_lm import train as train_run
from hvd_lm.checkpoint.format import MEMORY
from hvd_lm.compression import kept
from hvd_lm.compression.compressors import orthonormal
from hvd_lm.errors import ConfigError
from hvd_lm.job.topology import Topology
from hvd_lm.model.split import whole
from hvd_lm.model.stages import parameters

Matrix = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def exchanged(compressor: PowerSGD, gradients: list[Matrix], last: Matrix) -> tuple[Matrix, list[Matrix], Matrix]:
    """Of ranks with these gradients: what is applied, what each keeps, and `last` of the next step."""
    total = sum(compressor.compress(np, gradient, last) for gradient in gradients)
    common, messages = zip(*(compressor.combine(np, gradient, total) for gradient in gradients), strict=True)
    summed = sum(messages)
    assert {message.dtype.itemsize for message in (total, *messages)} == {2 if compressor.halves else 4}
    for others in common[1:]:
        np.testing.assert_array_equal(others, common[0])
    sent = [compressor.decompress(np, common[0], message) for message in messages]
    return (
        compressor.decompress(np, common[0], summed),
        [gradient - own for gradient, own in zip(gradients, sent, strict=True)],
        np.asarray(summed, np.float32),
    )


# --- NumPy -----------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 20)),
    rank=st.integers(1, 5),
    ranks=st.integers(1, 4),
    scale=st.sampled_from([1e-20, 1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**32),
)
def test_what_is_applied_and_what_is_kept_are_the_gradients(
    shape: tuple[int, int], rank: int, ranks: int, scale: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    gradients = [np.float32(scale) * generator.standard_normal(shape, np.float32) for _ in range(ranks)]
    last = generator.standard_normal((shape[1], rank), np.float32)
    applied, keeps, _ = exchanged(PowerSGD(rank), gradients, last)
    expected = np.sum(gradients, axis=0, dtype=np.float64)
    np.testing.assert_allclose(applied + np.sum(keeps, axis=0, dtype=np.float64), expected, atol=1e-5 * scale * ranks)
    assert np.linalg.norm(applied / scale) <= np.linalg.norm(expected / scale) * (1 + 1e-5), "a projection"


@settings(max_examples=50)
@given(scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]), ranks=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_what_halves_round_off_is_kept(scale: float, ranks: int, seed: int) -> None:
    """Over several steps, of one rank's own message exactly, and of the sum as far as a sum of halves is rounded."""
    generator = np.random.default_rng(seed)
    gradients = [np.float32(scale) * generator.standard_normal((30, 20), np.float32) for _ in range(ranks)]
    wholes, last = gradients, generator.standard_normal((20, 3), np.float32)
    for _ in range(4):
        applied, keeps, last = exchanged(PowerSGD(3, halves=True), wholes, last)
        asked = np.sum(wholes, axis=0, dtype=np.float64)
        assert np.linalg.norm(applied) > 0.1 * np.linalg.norm(asked)
        wrong = np.linalg.norm(applied + np.sum(keeps, axis=0, dtype=np.float64) - asked)
        assert wrong <= (1e-5 if ranks == 1 else 3e-3) * np.linalg.norm(asked)
        wholes = [gradient + keep for gradient, keep in zip(gradients, keeps, strict=True)]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_halves_find_nearly_the_same(scale: float) -> None:
    """Whatever the size of a gradient, which two factors of its own size would take out of the range of halves."""
    left, right = np.linalg.qr(normal(40, 12))[0], np.linalg.qr(normal(12, 12, seed=1))[0]
    gradient = np.float32(scale) * (left * 0.5 ** np.arange(12, dtype=np.float32)) @ right.T
    found = {}
    for halves in (False, True):
        last = normal(12, 3, seed=2)
        for _ in range(6):
            found[halves], _, last = exchanged(PowerSGD(3, halves=halves), [gradient], last)
    assert np.linalg.norm(found[True] - found[False]) < 1e-2 * np.linalg.norm(found[False])


@pytest.mark.parametrize(("shape", "rank"), [((8, 5), 5), ((5, 8), 5), ((5, 8), 7)])
def test_full_rank_is_exact(shape: tuple[int, int], rank: int) -> None:
    gradients = [normal(*shape, seed=seed) for seed in range(3)]
    applied, keeps, _ = exchanged(PowerSGD(rank), gradients, normal(shape[1], rank, seed=9))
    np.testing.assert_allclose(applied, sum(gradients), atol=2e-5)
    # One rank alone may have directions that the sum has not.
    np.testing.assert_allclose(sum(keeps), 0 * applied, atol=2e-5)


def test_steps_on_one_gradient_find_the_best_approximation() -> None:
    """Of all matrices of rank r, that of the r largest singular values (Eckart & Young 1936)."""
    left, right = np.linalg.qr(normal(40, 12))[0], np.linalg.qr(normal(12, 12, seed=1))[0]
    values = 0.5 ** np.arange(12, dtype=np.float32)
    gradient = (left * values) @ right.T
    compressor, last = PowerSGD(3), normal(12, 3, seed=2)
    for _ in range(12):
        applied, _, last = exchanged(compressor, [gradient], last)
    np.testing.assert_allclose(applied, (left[:, :3] * values[:3]) @ right[:, :3].T, atol=1e-5)


def test_what_is_kept_is_sent_later() -> None:
    """The sum of what is applied follows that of the gradients: what is missing does not grow."""
    compressor, last = PowerSGD(1), normal(6, 1, seed=3)
    asked, applied, kept_by = np.zeros((9, 6), np.float32), np.zeros((9, 6), np.float32), np.zeros((9, 6), np.float32)
    mean, missing = normal(9, 6), []
    for step in range(200):
        gradient = mean + normal(9, 6, seed=step + 1)
        asked += gradient
        sent, (kept_by,), last = exchanged(compressor, [gradient + kept_by], last)
        applied += sent
        missing.append(np.linalg.norm(asked - applied))
    assert max(missing[100:]) < 2 * max(missing[:100])
    assert missing[-1] < 0.2 * np.linalg.norm(asked)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_columns_become_orthonormal(scale: float) -> None:
    columns = np.float32(scale) * normal(50, 6)
    columns[:, 1] = columns[:, 0] * np.float32(1 + 1e-3) + columns[:, 1] * np.float32(1e-3)
    basis = orthonormal(np, columns)
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=2e-6)
    unit = columns.astype(np.float64) / scale
    np.testing.assert_allclose(basis @ (basis.T @ unit), unit, atol=1e-4)


def test_columns_without_a_direction_of_their_own_are_zeros() -> None:
    columns = normal(50, 5)
    columns[:, 2], columns[:, 3] = 2 * columns[:, 0] - columns[:, 1], 0
    basis = orthonormal(np, columns)
    np.testing.assert_allclose(basis.T @ basis, np.diag([1, 1, 0, 0, 1]), atol=2e-6)
    few = orthonormal(np, normal(2, 5))
    np.testing.assert_allclose(few.T @ few, np.diag([1, 1, 0, 0, 0]), atol=2e-6)


def test_a_column_of_zeros_does_not_stay_one() -> None:
    last = normal(12, 3)
    last[:, 1] = 0
    _, _, after = exchanged(PowerSGD(3), [normal(20, 12)], last)
    assert (np.abs(after).sum(axis=0) > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    gradients = [normal(9, 7), normal(9, 7, seed=1)]
    gradients[1][4, 3] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        applied, _, _ = exchanged(PowerSGD(2), gradients, normal(7, 2))
    assert not np.isfinite(np.linalg.norm(applied))


def test_first_matrices_are_those_of_the_name() -> None:
    compressor = PowerSGD(4)
    first = compressor.first("a", (100, 80))
    assert first is not None
    assert first.shape == (80, 4)
    np.testing.assert_array_equal(compressor.first("a", (200, 80)), first)
    assert not np.array_equal(compressor.first("b", (100, 80)), first)  # type: ignore[arg-type]
    for shape in ((80,), (80, 4), (7, 9)):
        assert compressor.first("a", shape) is None, "it would not be smaller"


@pytest.mark.parametrize(("rank", "steps", "flag"), [(0, 0, "--powersgd-rank"), (2, -1, "--powersgd-start-steps")])
def test_impossible_compressors_are_refused(rank: int, steps: int, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        PowerSGD(rank, steps)


@pytest.mark.parametrize("topology", [{"model_parallel": 2}, {"split": "optimizer"}, {"split": "layers", "model_parallel": 2}])
def test_what_is_divided_is_not_compressed(topology: dict[str, Any]) -> None:
    powersgd = CommunicationConfig(compression="powersgd")
    with pytest.raises(ConfigError, match="--compression powersgd works on whole gradients") as caught:
        RunConfig(communication=powersgd, topology=TopologyConfig(**topology))
    assert len(str(caught.value).splitlines()) == 1
    shares = {name: whole(parameter) for name, parameter in parameters(ModelConfig(100)).items()}
    with pytest.raises(ConfigError, match="works on whole gradients"):
        kept.firsts(PowerSGD(1), shares, Topology(0, 1, 2, "vocabulary"))


def test_what_a_worker_would_take_with_it_is_not_kept() -> None:
    with pytest.raises(ConfigError, match="--elastic"):
        RunConfig(communication=CommunicationConfig(compression="powersgd"), elastic=True)
    with pytest.raises(ConfigError, match="without elastic"):
        train_run(RunConfig(elastic=True), compressor=PowerSGD(1))


def test_one_rank_has_nothing_to_compress() -> None:
    shares = {name: whole(parameter) for name, parameter in parameters(ModelConfig(1000)).items()}
    assert kept.firsts(PowerSGD(1), shares, Topology(0, 1, 1)) == {}
    firsts = kept.firsts(PowerSGD(1), shares, Topology(0, 2, 1))
    assert set(firsts) == {name for name in shares if not name.endswith("bias")}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_two_ranks_keep_is_spread_over_others(ranks: int) -> None:
    earlier = normal(2 * 5, 3)
    spread = kept.Spread((ranks * 5, 3), 5, earlier)
    parts = [np.concatenate([spread[row : row + 2], spread[row + 2 : row + 5]]) for row in range(0, ranks * 5, 5)]
    np.testing.assert_allclose(np.sum(parts, axis=0), earlier[:5] + earlier[5:], atol=1e-6)
    if ranks == 2:
        np.testing.assert_array_equal(np.concatenate(parts), earlier)
    assert not kept.Spread((ranks * 5, 3), 5, None)[0:5].any()


def test_a_checkpoint_holds_what_is_kept(tmp_path: Path) -> None:
    saved = example()
    rows, *rest = saved.weights["output_kernel"].shape
    memory = {"kept/output_kernel": normal(3 * rows, *rest), "last/output_kernel": normal(*rest, 2)}
    saved = replace(saved, memory=memory)
    folder = checkpoints.save(saved, tmp_path, keep=1)
    for read in (checkpoints.load, checkpoints.mapped):
        found = read(tmp_path).memory
        assert found.keys() == memory.keys()
        for name, array in memory.items():
            np.testing.assert_array_equal(found[name], array)
    assert checkpoints.load_model(tmp_path).memory == {}
    forget(folder)
    assert checkpoints.load(tmp_path).memory == {}


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [("kept/output_kernel", 0, 1), ("kept/output_kernel", 1, 0), ("kept/nothing", 0, 0), ("other/output_kernel", 0, 0)],
)
def test_what_nobody_keeps_is_refused(tmp_path: Path, name: str, columns: int, rows: int) -> None:
    saved = example()
    high, wide = saved.weights["output_kernel"].shape
    checkpoints.save(replace(saved, memory={name: normal(2 * high + rows, wide + columns)}), tmp_path, keep=1)
    assert f"{name} is nothing that is remembered" in refusal(tmp_path)


# --- frameworks ------------------------------------------------------------------------------------------


def functions_of(framework: str) -> tuple[Any, Any]:
    """The functions of the framework's arrays, and what makes one of a NumPy array."""
    if framework == "torch":
        import torch

        return torch, torch.from_numpy
    import tensorflow as tf
    import tensorflow.experimental.numpy as tnp

    return tnp, tf.constant


def test_a_compressor_of_ones_own_is_the_only_one(framework: str) -> None:
    for communication in (CommunicationConfig(compression="fp16"), CommunicationConfig(reduction="adasum")):
        with pytest.raises(ConfigError, match="--compression none and --reduction sum"):
            hvd_lm.adapter(framework, communication, threads=1, compressor=PowerSGD(1))


@pytest.mark.parametrize("halves", [False, True])
def test_a_framework_computes_what_numpy_does(framework: str, halves: bool) -> None:
    xp, array = functions_of(framework)
    compressor, gradient, last = PowerSGD(4, halves=halves), normal(60, 40), normal(40, 4, seed=1)
    last[:, 2] = 0
    total = compressor.compress(np, gradient, last)
    np.testing.assert_allclose(compressor.compress(xp, array(gradient), array(last)), total, atol=1e-2 if halves else 1e-4)
    common, message = compressor.combine(np, gradient, total)
    found = compressor.combine(xp, array(gradient), array(total))
    np.testing.assert_allclose(found[0], common, atol=1e-5)
    np.testing.assert_allclose(found[1], message, atol=2e-2 if halves else 1e-4)
    expected = compressor.decompress(np, common, message)
    assert np.asarray(compressor.decompress(xp, *found)).dtype == np.float32
    np.testing.assert_allclose(compressor.decompress(xp, array(common), array(message)), expected, atol=1e-5)


# --- ranks -----------------------------------------------------------------------------------------------


def approximated(total: NDArray[np.float64], last: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vogels et al. 2019, algorithm 1, in float64 with NumPy's QR: the approximation of a gradient, and Q."""
    basis, _ = np.linalg.qr(total @ last)
    return basis @ (basis.T @ total), total.T @ basis


def checked_window(ranks: list[dict[str, Any]], before: dict[str, Any], names: set[str], *, exact: bool) -> dict[str, Any]:
    """Compare what the ranks report of a window with the reference; what is remembered after it."""
    rows = np.any([np.any(rank["own"]["embedding"], axis=1) for rank in ranks], axis=0)
    sent, squares = 2 * len(rows), 0.0
    after = dict(before)
    for name in ranks[0]["own"]:
        own = [np.array(rank["own"][name], np.float64) for rank in ranks]
        here = rows if name == "embedding" else slice(None)
        expected = sum(own)
        if name in names and not exact:
            keeps = [has.copy() for has in before[f"kept/{name}"]]
            # Rows that no rank has touched stay as they are.
            wholes = [(gradient + has)[here] for gradient, has in zip(own, keeps, strict=True)]
            expected = np.zeros_like(own[0])
            last = before[f"last/{name}"]
            expected[here], after[f"last/{name}"] = approximated(np.sum(wholes, axis=0), last)
            basis, _ = np.linalg.qr(np.sum(wholes, axis=0) @ last)
            for has, whole in zip(keeps, wholes, strict=True):
                has[here] = whole - basis @ (basis.T @ whole)
            after[f"kept/{name}"] = keeps
            sent += 4 * last.shape[1] * (len(wholes[0]) + last.shape[0])
        else:
            sent += 4 * expected[here].size
        for rank in ranks:
            assert_close(rank["applied"][name], expected, name)
        squares += float((expected**2).sum())
    for place, rank in enumerate(ranks):
        assert rank["bytes"] == sent
        assert rank["norm"] == pytest.approx(math.sqrt(squares), rel=1e-4)
        for name in names:
            assert_close(rank["memory"][f"kept/{name}"], after[f"kept/{name}"][place], f"kept/{name}")
            # The reference's columns may have other signs, and are of use all the same.
            assert_close(np.abs(rank["memory"][f"last/{name}"]), np.abs(after[f"last/{name}"]), f"last/{name}")
    assert ranks[0]["applied"] == ranks[1]["applied"]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    return after


def assert_close(found: Any, expected: NDArray[np.float64], name: str) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(np.abs(expected).max(), 1e-9), err_msg=name)


@pytest.mark.ranks
@pytest.mark.parametrize("controller", ["gloo", "mpi"])
def test_steps_of_two_ranks_are_those_of_the_reference(framework: str, controller: str) -> None:
    results = pools.body("compressed", 2, framework, "powersgd", controller=controller)
    firsts = {name: np.array(first) for name, first in results[0]["firsts"].items()}
    kernels = {f"lstm.{layer}.{kind}_kernel" for layer in range(2) for kind in ("input", "recurrent")}
    assert set(firsts) == {"embedding", "output_kernel", *kernels}
    shapes = {name: np.shape(results[0]["windows"][0]["own"][name]) for name in firsts}
    memory: dict[str, Any] = {f"last/{name}": first for name, first in firsts.items()}
    memory |= {f"kept/{name}": [np.zeros(shape)] * 2 for name, shape in shapes.items()}
    *windows, overflow = zip(*(result["windows"] for result in results), strict=True)
    for number, window in enumerate(windows):
        memory = checked_window(list(window), memory, set(firsts), exact=number == 0)
    assert [rank["was_applied"] for window in windows for rank in window] == [True] * 2 * len(windows)
    for rank in overflow:
        assert not rank["was_applied"]
        assert not np.isfinite(rank["norm"])
        assert rank["weights"] == windows[-1][0]["weights"]
        for name, first in firsts.items():
            assert not np.any(rank["memory"][f"kept/{name}"]), "nothing of what is not finite stays"
            np.testing.assert_array_equal(np.array(rank["memory"][f"last/{name}"]), first)


FLAGS = [*launcher.SMALL, "--hidden-size", "64", "--backward-passes-per-step", "2", "--threads", "1", "--deterministic"]
POWERSGD = ["--compression", "powersgd", "--powersgd-rank", "2"]


def train(ranks: int, framework: str, out: Path, steps: int, *flags: str) -> list[dict[str, Any]]:
    rest = () if "--learning-rate" in flags else ("--learning-rate", "0.005")
    pools.hvd_lm(
        ranks, "train", "--framework", framework, "--out", out, *FLAGS, "--batch-size", str(8 // ranks), "--steps", str(steps),
        *rest, *flags,
    )  # fmt: skip
    return launcher.metrics(out)


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


@pytest.mark.ranks
def test_two_ranks_and_four_make_the_same_steps() -> None:
    """With the same tokens; looked-up rows on both sides, and short windows."""
    framework = INSTALLED[0]
    settings = {"compression": "powersgd", "powersgd_rank": 2, "powersgd_start_steps": 2, "steps": 9}
    two, four = (on_grid(framework, ranks, "sampled", **settings) for ranks in (2, 4))
    assert_same_figures(four, np.array(two[0]["figures"]))
    assert np.abs(np.array(two[0]["figures"]) / alone(framework, "sampled")[:9] - 1).max() > 1e-3, "compressed"


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["SignSGD", "Rows"])
def test_the_compressors_of_the_page_train(framework: str, name: str, tmp_path: Path) -> None:
    """docs/communication.md, on two ranks."""
    results = pools.body("own_compressor", 2, framework, name, tmp_path)
    assert results[0] == results[1]
    rows = launcher.metrics(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.5
    model = ModelConfig(vocabulary_size=1000, embedding_size=24, hidden_size=32)
    assert rows[-1]["bytes_sent"] < 0.5 * sum(4 * math.prod(parameter.shape) for parameter in parameters(model).values())


@pytest.mark.ranks
@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both frameworks")
def test_frameworks_agree_and_learn_nearly_as_without(tmp_path: Path) -> None:
    curves = {
        framework: train(2, framework, tmp_path / framework, 100, *POWERSGD, "--powersgd-start-steps", "5")
        for framework in INSTALLED
    }
    first, second = curves.values()
    np.testing.assert_allclose(losses(second), losses(first), rtol=1e-4)
    assert [row["bytes_sent"] for row in first] == [row["bytes_sent"] for row in second]
    halves = train(2, INSTALLED[1], tmp_path / "halves", 100, *POWERSGD, "--powersgd-start-steps", "5", "--powersgd-halves")
    assert sum(row["bytes_sent"] for row in halves[5:]) < 0.7 * sum(row["bytes_sent"] for row in first[5:])
    assert losses(halves) != losses(second)
    assert halves[-1]["validation_loss"] == pytest.approx(second[-1]["validation_loss"], rel=0.01)
    dense = train(2, INSTALLED[0], tmp_path / "dense", 100)
    assert losses(dense)[:5] == losses(first)[:5]
    assert [row["bytes_sent"] for row in dense[:5]] == [row["bytes_sent"] for row in first[:5]]
    assert sum(row["bytes_sent"] for row in first[5:]) * 8 < sum(row["bytes_sent"] for row in dense[5:])
    assert dense[-1]["validation_loss"] < dense[0]["loss"] - 1
    assert first[-1]["validation_loss"] == pytest.approx(dense[-1]["validation_loss"], rel=0.02)


def moved(out: Path, since: Path) -> dict[str, Matrix]:
    """How far a run has taken the weights that are compressed since another one."""
    before, after = checkpoints.load(since).weights, checkpoints.load(out).weights
    return {name: after[name] - before[name] for name in after if name.endswith("kernel")}


def difference(found: dict[str, Matrix], expected: dict[str, Matrix]) -> float:
    """Relative, the largest of all."""
    return max(float(np.linalg.norm(found[name] - array) / np.linalg.norm(array)) for name, array in expected.items())


START = (*POWERSGD, "--powersgd-start-steps", "3", "--optimizer", "sgd", "--learning-rate", "1.0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of a framework: where ``whole`` has 12 steps and ``parts`` 7."""

    @cache
    def of(framework: str) -> Path:
        folder = tmp_path_factory.mktemp(framework)
        train(2, framework, folder / "whole", 12, *START)
        train(2, framework, folder / "parts", 7, *START)
        return folder

    return of


@pytest.mark.ranks
def test_a_run_that_stopped_goes_on_bit_for_bit(framework: str, runs: Callable[[str], Path], tmp_path: Path) -> None:
    whole, parts = runs(framework) / "whole", runs(framework) / "parts"
    rows = train(2, framework, tmp_path, 12, *START, "--resume", str(parts))
    assert losses(rows) == losses(launcher.metrics(whole))[7:]
    found, expected = checkpoints.load(tmp_path), checkpoints.load(whole)
    for of_found, of_expected in ((found.weights, expected.weights), (found.memory, expected.memory)):
        assert of_found.keys() == of_expected.keys()
        for name, array in of_expected.items():
            assert array.any()
            np.testing.assert_array_equal(of_found[name], array, err_msg=name)
    assert expected.memory["kept/output_kernel"].shape == (2 * 1000, 64)


@pytest.mark.ranks
def test_a_run_goes_on_with_what_others_have_kept(runs: Callable[[str], Path], tmp_path: Path) -> None:
    """On 4 ranks instead of 2, which read the same streams, or in the other framework: as if it had not stopped."""
    first, other = INSTALLED[0], INSTALLED[-1]
    parts, expected = runs(first) / "parts", moved(runs(first) / "whole", runs(first) / "parts")
    forgetful = tmp_path / "forgetful"
    shutil.copytree(parts, forgetful)
    forget(forgetful / "checkpoints" / "step-00000007")
    differences = []
    for number, (ranks, framework, source) in enumerate(((4, first, parts), (2, other, parts), (2, first, forgetful))):
        out = tmp_path / str(number)
        train(ranks, framework, out, 12, *START, "--resume", str(source))
        differences.append(difference(moved(out, parts), expected))
    on_others, in_the_other, without = differences
    print(differences)
    assert without > 0.02, "what is kept makes a difference that can be seen"
    assert max(on_others, in_the_other) < 2e-3


def forget(folder: Path) -> None:
    """Take what ranks have kept out of a checkpoint."""
    (folder / MEMORY).unlink()
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    reseal(folder, files={name: "" for name in files if name != MEMORY})
