"""The gradient noise scale: its estimate against what made the gradients, against norms of runs, and what a plan says of it."""

from __future__ import annotations

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
from test_plan import FAST, RUN, SLOW, TARGET

import hvd_lm
from hvd_lm.communication.measure import Work
from hvd_lm.communication.plan import PlanConfig, plan
from hvd_lm.config import CommunicationConfig, RunConfig, TopologyConfig
from hvd_lm.data.sources import IGNORED
from hvd_lm.errors import ConfigError
from hvd_lm.training.noise_scale import NoiseScale, parts

# --- the estimate ----------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 10**4), st.integers(2, 1000))
def test_expected_norms_give_what_they_are_made_of(signal: float, noise: float, small: int, times: int) -> None:
    squares = [signal + noise / tokens for tokens in (small, small * times)]
    found = parts(small, small * times, *squares)
    assert found[0] == pytest.approx(signal, rel=1e-6, abs=1e-9 * noise)
    assert found[1] == pytest.approx(noise, rel=1e-6, abs=1e-8 * signal * small)


def test_it_is_not_biased_by_a_small_batch_that_is_a_part_of_the_large_one() -> None:
    """Gradients of 300 numbers, tokens with noise of variance 4 each: |G|^2 = 75, tr(S) = 1200."""
    generator = np.random.default_rng(1)
    of_tokens = 0.5 + 2 * generator.standard_normal((2000, 16, 300), np.float32)
    small, large = of_tokens[:, :4].mean(1), of_tokens.mean(1)
    found = [parts(4, 16, float(a @ a), float(b @ b)) for a, b in zip(small, large, strict=True)]
    signal, noise = np.mean(found, axis=0)
    assert signal == pytest.approx(75, rel=0.05)
    assert noise == pytest.approx(1200, rel=0.05)


# --- runs ------------------------------------------------------------------------------------------------

SMALL = [*launcher.SMALL, "--batch-size", "4", "--threads", "1", "--deterministic"]
TOKENS = 4 * 16


def alone(framework: str, out: Path, **settings: Any) -> list[dict[str, Any]]:
    """The rows of a run of one process, on a text that is the same in every edition of Python."""
    passes = settings.pop("backward_passes_per_step", 3)
    drawn = np.random.default_rng(1).zipf(1.3, 9000) % 400
    text = out.parent / "text.txt"
    text.write_text("".join(f"w{word}{' ' if place % 20 else chr(10)}" for place, word in enumerate(drawn)))
    model = hvd_lm.ModelConfig(vocabulary_size=300, embedding_size=24, hidden_size=32)
    hvd_lm.train(
        RunConfig(
            framework=framework,  # type: ignore[arg-type]
            out=out,
            threads=1,
            deterministic=True,
            model=model,
            data=hvd_lm.DataConfig(text, batch_size=4, sequence_length=16),  # type: ignore[arg-type]
            communication=CommunicationConfig(backward_passes_per_step=passes),
            **settings,
        )
    )
    return launcher.metrics(out)


def test_it_compares_the_first_micro_batch_with_the_window(framework: str, tmp_path: Path) -> None:
    """The first step of a run with one micro-batch a step tells the norm of the same."""
    (row,) = alone(framework, tmp_path / "window", steps=1, noise_scale_every=1)
    (first,) = alone(framework, tmp_path / "first", steps=1, backward_passes_per_step=1)
    signal, noise = parts(TOKENS, 3 * TOKENS, first["gradient_norm"] ** 2, row["gradient_norm"] ** 2)
    assert signal > 0
    assert row["noise_scale"] == pytest.approx(noise / signal, rel=1e-3)


def test_steps_are_those_without_it_and_few_are_measured(framework: str, tmp_path: Path) -> None:
    rows = alone(framework, tmp_path / "with", steps=6, noise_scale_every=3)
    without = alone(framework, tmp_path / "without", steps=6)
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in without], rtol=1e-5)
    assert [row["step"] for row in rows if "noise_scale" in row] == [3, 6]
    assert not any("noise_scale" in row for row in without)


class Told:
    """An adapter whose gradients, and a job whose sums over two ranks, a test gives."""

    def __init__(self) -> None:
        self.gradient = np.zeros(3, np.float32)
        self.job = self
        self.other = np.zeros(3)

    def gradients(self) -> dict[str, Any]:
        return {"one": self.gradient[:2], "two": self.gradient[2:]}

    def sum(self, own: Any, group: str) -> Any:
        assert group == "all"
        return own + self.other


def test_it_is_the_ratio_of_means_over_steps_and_ranks() -> None:
    """A tenth of the newest parts, nine tenths of those before."""
    told = Told()
    noise_scale = NoiseScale(told, 2)  # type: ignore[arg-type]
    assert [step for step in range(1, 7) if noise_scale.is_due(step)] == [2, 4, 6]
    targets = np.array([[5, 6], [7, IGNORED], [8, 9]], np.int32)
    signal = noise = 0.0
    for own, other, norm in (([2, 1, 2], 5.0, 2.0), ([3, 0, 4], 31.0, 2.5), ([1, 2, 2], 30.0, 2.0)):
        # Of 5 targets of weight 0.5: a gradient of 2.5 times the mean's.
        told.gradient, told.other = 2.5 * np.array(own, np.float32), np.array([other, 7, 1])
        noise_scale.note(targets, 0.5)
        found = noise_scale.figures(100, norm)
        of_step = parts(6, 100, (float(np.dot(own, own)) + other) / 2, norm**2)
        signal, noise = 0.9 * signal + 0.1 * of_step[0], 0.9 * noise + 0.1 * of_step[1]
        assert found == {"noise_scale": pytest.approx(noise / signal)}
        assert noise_scale.figures(100, norm) == {}, "of a window that was not noted"


@pytest.mark.parametrize(
    ("other", "target_count", "norm"),
    [([9.0, 5, 1], 5, 1.0), ([9.0, 5, 1], 100, float("inf")), ([9.0, 5, 1], 100, float("nan")), ([9.0, 5, 1], 100, 9.0)],
    ids=["no larger batch", "overflow", "no number", "no noise"],
)
def test_where_there_is_no_estimate_there_is_no_figure(other: list[float], target_count: int, norm: float) -> None:
    told = Told()
    told.gradient, told.other = np.ones(3, np.float32), np.array(other)
    noise_scale = NoiseScale(told, 1)  # type: ignore[arg-type]
    noise_scale.note(np.zeros((5, 1), np.int32), 1.0)
    assert noise_scale.figures(target_count, norm) == {}


def test_a_rank_without_targets_has_no_say() -> None:
    told = Told()
    told.gradient, told.other = np.full(3, np.nan, np.float32), np.array([9.0, 5, 1])
    noise_scale = NoiseScale(told, 1)  # type: ignore[arg-type]
    noise_scale.note(np.full((5, 1), IGNORED, np.int32), 1.0)
    signal, noise = parts(5, 100, 9.0, 4.0)
    assert noise_scale.figures(100, 2.0) == {"noise_scale": pytest.approx(noise / signal)}
    told.other = np.zeros(3)
    noise_scale.note(np.full((5, 1), IGNORED, np.int32), 1.0)
    assert noise_scale.figures(100, 2.0) == {}


@pytest.mark.ranks
@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_ranks_share_their_norms(framework: str, compression: str, tmp_path: Path) -> None:
    """Two ranks of two micro-batches: the small batch is that of a rank, in the mean over both, whatever the loss scale."""
    flags = ["--framework", framework, *SMALL, "--steps", "1", "--compression", compression]
    pools.hvd_lm(2, "train", "--out", tmp_path / "window", *flags, "--backward-passes-per-step", "2", "--noise-scale-every", "1")
    (row,) = launcher.metrics(tmp_path / "window")
    squares = pools.body("own_squares", 2, framework, tmp_path / "squares")
    signal, noise = parts(TOKENS, 4 * TOKENS, float(np.mean(squares)), row["gradient_norm"] ** 2)
    assert row["noise_scale"] == pytest.approx(noise / signal, rel=0.02)


@pytest.mark.ranks
@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both frameworks")
def test_frameworks_agree(tmp_path: Path) -> None:
    found = []
    for framework in INSTALLED:
        flags = ["--framework", framework, *SMALL, "--steps", "8", "--backward-passes-per-step", "3", "--noise-scale-every", "2"]
        pools.hvd_lm(2, "train", "--out", tmp_path / framework, *flags)
        found.append([row.get("noise_scale") for row in launcher.metrics(tmp_path / framework)])
    first, second = found
    assert [value is None for value in first] == [True, False] * 4
    np.testing.assert_allclose(second[1::2], first[1::2], rtol=1e-2)


# --- settings, and plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "communication",
    [
        CommunicationConfig(compression="powersgd"),
        CommunicationConfig(compression="topk"),
        CommunicationConfig(reduction="adasum"),
        CommunicationConfig(reduce_every=2),
        CommunicationConfig(late_gradients=True),
    ],
)
def test_what_is_not_exact_is_refused(communication: CommunicationConfig) -> None:
    with pytest.raises(ConfigError, match="--noise-scale-every compares exact gradients of whole models"):
        RunConfig(noise_scale_every=1, communication=communication)


def test_other_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="--noise-scale-every must be at least 1, not 0"):
        RunConfig(noise_scale_every=0)
    with pytest.raises(ConfigError, match="whole models"):
        RunConfig(noise_scale_every=1, topology=TopologyConfig(model_parallel=2))
    with pytest.raises(ConfigError, match="raise --backward-passes-per-step"):
        RunConfig(noise_scale_every=1, communication=CommunicationConfig(backward_passes_per_step=1))
    with pytest.raises(ConfigError, match="--noise-scale must be above 0 and finite, not 0"):
        PlanConfig(Path("link.json"), Path("run.yaml"), "2", 1000, noise_scale=0.0)


@pytest.mark.parametrize("link", [FAST, SLOW])
def test_a_plan_says_what_the_batch_costs(link: Any) -> None:
    """A step of 1,024 tokens, a noise scale of 256: 1 + 1024 / 256 and 1 + 256 / 1024."""
    asked = plan(link, "torch", Work.of(RUN), RUN.topology, (4,), TARGET, noise_scale=256.0)
    without = plan(link, "torch", Work.of(RUN), RUN.topology, (4,), TARGET)
    said = ", at a noise scale of 256 tokens 5.00 times the fewest tokens and 1.25 times the fewest steps."
    assert asked.explanation[2].endswith(said)
    assert replace(asked, explanation=without.explanation) == without
