"""Local SGD: each rank makes steps of its own, and every few of them all have the mean of their weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.config import CommunicationConfig, RunConfig, TopologyConfig
from hvd_lm.errors import ConfigError
from hvd_lm.training.local_steps import told_every

RATE, CLIP, MOMENTUM = 0.5, 0.2, 0.9
"""Of the body own_steps."""


def arrays(values: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(value, np.float64) for name, value in values.items()}


def assert_close(found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in arrays(found).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.ranks
@pytest.mark.parametrize(("every", "told", "averaged", "quiet"), [(2, 1, {4, 6, 7}, set()), (5, 3, {7}, {5, 6})])
def test_steps_and_means_are_those_of_the_reference(
    framework: str, every: int, told: int, averaged: set[int], quiet: set[int]
) -> None:
    """SGD with momentum, in NumPy: two steps together, then some by each rank, and so on; the last one is averaged as wanted."""
    ranks = pools.body("own_steps", 2, framework, str(every), str(told))
    velocity = [{name: np.zeros(np.shape(value)) for name, value in rank[0]["gradients"].items()} for rank in ranks]
    weights: list[dict[str, np.ndarray]] = []
    size = 0
    for number, steps in enumerate(zip(*ranks, strict=True), 1):
        assert [step["is_own"] for step in steps] == [number > 2] * 2
        assert [step["tells"] for step in steps] == [number not in quiet] * 2
        gradients = [arrays(step["gradients"]) for step in steps]
        if number <= 2:
            assert_close(steps[0]["gradients"], gradients[1])
        else:
            gradients = [{name: 2 * value for name, value in of_rank.items()} for of_rank in gradients]
            assert any(not np.allclose(gradients[0][name], gradients[1][name]) for name in gradients[0])
        for rank, (step, gradient) in enumerate(zip(steps, gradients, strict=True)):
            norm = math.sqrt(sum(float((value**2).sum()) for value in gradient.values()))
            assert step["norm"] == pytest.approx(norm, rel=1e-5)
            for name, value in gradient.items():
                velocity[rank][name] = MOMENTUM * velocity[rank][name] + value * min(1.0, CLIP / norm)
            if weights:
                moved = {name: before - RATE * velocity[rank][name] for name, before in weights[rank].items()}
                assert_close(step["made"], moved)
        size = sum(4 * value.size for value in gradients[0].values())
        if number in averaged:
            mean = {name: sum(arrays(step["made"])[name] for step in steps) / 2 for name in gradients[0]}
            for step in steps:
                assert_close(step["averaged"], mean)
                assert step["weight_bytes"] == size
            assert steps[0]["averaged"] == steps[1]["averaged"]
        else:
            for step in steps:
                assert step["averaged"] == step["made"]
                assert step["weight_bytes"] == 0
        assert all((step["gradient_bytes"] > size / 2) == (number <= 2) for step in steps)
        weights = [arrays(step["averaged"]) for step in steps]
    for rank in ranks:
        assert_close(
            rank[-1]["moments"], {f"momentum/{name}": (value + velocity[1][name]) / 2 for name, value in velocity[0].items()}
        )


FLAGS = [*launcher.SMALL, "--hidden-size", "64", "--batch-size", "4", "--backward-passes-per-step", "2", "--threads", "1"]
LOCAL = ["--deterministic", "--reduce-every", "4", "--reduce-start-steps", "3"]


def train(framework: str, out: Path, *flags: str) -> list[dict[str, Any]]:
    pools.hvd_lm(2, "train", "--framework", framework, "--out", out, *FLAGS, "--learning-rate", "0.005", *flags)
    return launcher.metrics(out)


@pytest.mark.ranks
def test_a_run_that_was_killed_goes_on_bit_for_bit(framework: str, tmp_path: Path) -> None:
    """From a checkpoint within the steps of each rank's own: weights and moments are averaged there."""
    flags = [*LOCAL, "--steps", "12", "--checkpoint-every", "5", "--keep-checkpoints", "9"]
    whole = train(framework, tmp_path / "whole", *flags)
    weights = sum(4 * array.size for array in checkpoints.load(tmp_path / "whole").weights.values())
    with_weights = [row["step"] for row in whole if row["bytes_sent"] > weights / 4]
    assert with_weights == [1, 2, 3, 5, 7, 10, 11, 12]
    step = tmp_path / "whole" / "checkpoints" / "step-00000005"
    rest = train(framework, tmp_path / "rest", *flags, "--resume", str(step))
    assert [row["loss"] for row in rest] == [row["loss"] for row in whole[5:]]
    found, expected = (checkpoints.load(tmp_path / name) for name in ("rest", "whole"))
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], array, err_msg=name)


@pytest.mark.ranks
@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both frameworks")
def test_frameworks_agree_and_learn(tmp_path: Path) -> None:
    first, second = (train(framework, tmp_path / framework, *LOCAL, "--steps", "60") for framework in INSTALLED)
    np.testing.assert_allclose([row["loss"] for row in second], [row["loss"] for row in first], rtol=1e-4)
    together = train(INSTALLED[0], tmp_path / "together", "--deterministic", "--steps", "60")
    assert [row["loss"] for row in together[:3]] == [row["loss"] for row in first[:3]]
    assert first[-1]["validation_loss"] == pytest.approx(together[-1]["validation_loss"], rel=0.03)
    assert 2.5 * sum(row["bytes_sent"] for row in first) < sum(row["bytes_sent"] for row in together)


@pytest.mark.ranks
def test_a_gradient_that_is_not_finite_on_one_rank_ends_the_run_of_all(framework: str, tmp_path: Path) -> None:
    """The others hear of it with the next step; nobody's weights are touched by it."""
    results = pools.body("bad_gradient", 2, framework, tmp_path / "run", "6", '{"reduce_every": 9}')
    for result in results:
        assert "the gradient norm is" in result
        assert "at step 3, which was not applied" in result
    assert "rank 1" in results[0]
    kept = checkpoints.load(tmp_path / "run")
    assert all(np.isfinite(array).all() for array in kept.weights.values())


@pytest.mark.ranks
def test_one_in_a_quiet_step_is_told_in_the_next_that_is_not(framework: str, tmp_path: Path) -> None:
    """Steps 3 to 5 are quiet: the others go on until they hear of it."""
    results = pools.body("bad_gradient", 2, framework, tmp_path / "run", "12", '{"reduce_every": 9}', "4")
    for result in results:
        assert "at step 3, which was not applied" in result
    assert "rank 1" in results[0]
    rows = launcher.metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if row["communication_seconds"] == 0] == [3, 4, 5]
    kept = checkpoints.load(tmp_path / "run")
    assert kept.step == 5
    assert all(np.isfinite(array).all() for array in kept.weights.values())


@pytest.mark.parametrize(
    ("message", "step", "every", "patient", "told"),
    [
        (0.001, 0.1, 64, 600, 1),
        (0.1, 1.0, 64, 600, 5),
        (12, 2.7, 64, 0, 64),
        (12, 2.7, 999, 0, 223),
        (12, 2.7, 999, 600, 55),  # 150 s
        (12, 200, 999, 600, 1),
        (1, 0, 8, 600, 1),
    ],
)
def test_ranks_tell_each_other_as_often_as_takes_little(message: float, step: float, every: int, patient: float, told: int) -> None:
    assert told_every(message, step, every, patient) == told


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reduce_every": 0}, "--reduce-every must be at least 1"),
        ({"reduce_start_steps": -1}, "--reduce-start-steps must not be negative"),
        ({"reduce_every": 2, "compression": "fp16"}, "use it with --compression none"),
        ({"reduce_every": 2, "compression": "powersgd"}, "use it with --compression none"),
        ({"reduce_every": 2, "reduction": "adasum"}, "--reduction sum"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CommunicationConfig(**settings)


@pytest.mark.parametrize("rest", [{"elastic": True}, {"topology": TopologyConfig(split="optimizer")}])
def test_models_that_are_not_whole_have_no_mean(rest: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--reduce-every averages whole models"):
        RunConfig(communication=CommunicationConfig(reduce_every=2), **rest)


def test_one_rank_has_nobody_to_average_with(tmp_path: Path) -> None:
    """And makes the steps that it makes without."""
    runs = []
    for every in (1, 2):
        communication = CommunicationConfig(reduce_every=every, backward_passes_per_step=1)
        model = hvd_lm.ModelConfig(hidden_size=16, embedding_size=8)
        out = tmp_path / str(every)
        hvd_lm.train(RunConfig(framework=INSTALLED[0], out=out, steps=3, model=model, communication=communication))  # type: ignore[arg-type]
        runs.append([json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()])
    assert runs[0] == runs[1]
