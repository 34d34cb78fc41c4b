"""Late gradients: each is applied by the step after its own, whatever the ranks, and none is lost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pools
import pytest
from conftest import INSTALLED
from grids import alone, assert_same_figures, on_grid
from test_local_steps import arrays, assert_close, train

import hvd_lm
from hvd_lm import PowerSGD, RunConfig, TopologyConfig
from hvd_lm import checkpoint as checkpoints
from hvd_lm.config import CommunicationConfig, OptimizerConfig
from hvd_lm.errors import ConfigError

CLIP, MOMENTUM = 0.2, 0.9
"""Of the body late_steps."""


def norm_of(gradient: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float((value**2).sum()) for value in gradient.values()))


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_steps_are_those_of_the_reference(framework: str, ranks: int) -> None:
    """SGD with momentum, in NumPy; the gradients are those of a model that is never late, at the weights of their window."""
    results = pools.body("late_steps", ranks, framework)
    assert [rank["steps"] for rank in results] == [results[0]["steps"]] * ranks
    weights = arrays(results[0]["before"])
    velocity = {name: np.zeros_like(value) for name, value in weights.items()}
    late: tuple[float, dict[str, np.ndarray]] | None = None

    def applied(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert late is not None
        rate, gradient = late
        for name, value in gradient.items():
            velocity[name] = MOMENTUM * velocity[name] + value * min(1.0, CLIP / norm_of(gradient))
        return {name: value - rate * velocity[name] for name, value in weights.items()}

    for number, step in enumerate(results[0]["steps"], 1):
        gradient = arrays(step["gradients"])
        assert step["norm"] == pytest.approx(norm_of(late[1]) if late else 0.0, rel=1e-5)
        weights = applied(weights) if late else weights
        assert_close(step["weights"], weights)
        late = 0.5 / number, gradient
        if "caught_up" in step:
            assert step["caught_up_norm"] == pytest.approx(norm_of(gradient), rel=1e-5)
            weights, late = applied(weights), None
            assert_close(step["caught_up"], weights)
        assert step["bytes"] == step["plain_bytes"]
        assert (step["bytes"] > 0) == (ranks > 1)


@pytest.mark.ranks
@pytest.mark.parametrize("case", ["tied, with dropout", "sampled"])
def test_ranks_and_batches_make_the_same_steps(framework: str, case: str) -> None:
    """With the same tokens in a window; looked-up rows, dropout, and short windows."""
    one, two = (on_grid(framework, ranks, case, late_gradients=True) for ranks in (1, 2))
    assert_same_figures(two, np.array(one[0]["figures"]))
    assert np.abs(np.array(one[0]["figures"])[2:, 0] / alone(framework, case)[2:, 0] - 1).max() > 1e-3, "late"


LATE = ["--deterministic", "--late-gradients"]


@pytest.mark.ranks
def test_a_run_goes_on_bit_for_bit(framework: str, tmp_path: Path) -> None:
    """Nothing is on its way in a checkpoint."""
    flags = [*LATE, "--steps", "12", "--checkpoint-every", "5", "--keep-checkpoints", "9"]
    whole = train(framework, tmp_path / "whole", *flags)
    step = tmp_path / "whole" / "checkpoints" / "step-00000005"
    rest = train(framework, tmp_path / "rest", *flags, "--resume", str(step))
    assert [row["loss"] for row in rest] == [row["loss"] for row in whole[5:]]
    found, expected = (checkpoints.load(tmp_path / name) for name in ("rest", "whole"))
    assert expected.optimizer_state.applied_steps == 12
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], array, err_msg=name)


@pytest.mark.ranks
@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both frameworks")
@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_frameworks_agree_and_learn(compression: str, tmp_path: Path) -> None:
    flags = ("--compression", compression, "--steps", "60")
    first, second = (train(framework, tmp_path / framework, *LATE, *flags) for framework in INSTALLED)
    tolerance = 1e-4 if compression == "none" else 3e-3
    np.testing.assert_allclose([row["loss"] for row in second], [row["loss"] for row in first], rtol=tolerance)
    assert [row["bytes_sent"] for row in second] == [row["bytes_sent"] for row in first]
    at_once = train(INSTALLED[0], tmp_path / "at_once", "--deterministic", *flags)
    assert [row["bytes_sent"] for row in at_once] == [row["bytes_sent"] for row in first]
    assert at_once[0]["loss"] == first[0]["loss"]
    assert at_once[1]["loss"] != first[1]["loss"]
    assert first[-1]["validation_loss"] == pytest.approx(at_once[-1]["validation_loss"], rel=0.03)


@pytest.mark.ranks
def test_an_overflow_is_skipped(framework: str, tmp_path: Path) -> None:
    """Both gradients that were under way at that scale; then it goes on."""
    rows = train(framework, tmp_path, *LATE, "--compression", "fp16", "--loss-scale", "16777216", "--steps", "30")
    skipped = [row["step"] for row in rows if row["skipped"]]
    assert skipped
    assert 1 not in skipped, "nothing was applied yet"
    assert rows[-1]["loss_scale"] < 16777216
    assert rows[-1]["loss"] < rows[0]["loss"]
    kept = checkpoints.load(tmp_path)
    assert kept.optimizer_state.applied_steps == 30 - len(skipped)


@pytest.mark.ranks
@pytest.mark.parametrize("steps", [6, 4])
def test_a_gradient_that_is_not_finite_ends_the_run(framework: str, steps: int, tmp_path: Path) -> None:
    """That of step 4, in the step after it, or as it is the last one; all ranks say so, and the weights are those before."""
    results = pools.body("bad_gradient", 2, framework, tmp_path / "run", str(steps), '{"late_gradients": true}')
    assert results == [results[0]] * 2
    assert f"the gradient norm is nan at step {min(steps, 5)}, which was not applied: lower --learning-rate" in results[0]
    kept = checkpoints.load(tmp_path / "run")
    assert kept.optimizer_state.applied_steps == 3
    assert all(np.isfinite(array).all() for array in kept.weights.values())


@pytest.mark.parametrize(
    "settings",
    [{"compression": "powersgd"}, {"compression": "topk"}, {"reduction": "adasum"}, {"reduce_every": 2}],
)
def test_other_algorithms_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--late-gradients delays sums of gradients"):
        CommunicationConfig(late_gradients=True, **settings)


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ({"elastic": True}, "--late-gradients keeps whole gradients on their way"),
        ({"topology": TopologyConfig(split="optimizer")}, "--late-gradients keeps whole gradients on their way"),
        ({"optimizer": OptimizerConfig(optimizer="adagrad")}, "--late-gradients goes with --optimizer adam, adamw, sgd or asgd"),
    ],
)
def test_what_it_does_not_go_with(rest: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig(communication=CommunicationConfig(late_gradients=True), **rest)


def test_a_compressor_of_ones_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="without --gradient-predivide-factor, --reduce-every and --late-gradients"):
        hvd_lm.adapter(INSTALLED[0], CommunicationConfig(late_gradients=True), compressor=PowerSGD(2))
