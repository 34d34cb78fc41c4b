"""The learning rate: scaling with the global batch, warm-up, decay."""

from __future__ import annotations

import itertools
import math
from typing import Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_lm.config import OptimizerConfig
from hvd_lm.errors import ConfigError
from hvd_lm.training.schedule import Schedule, begun, learning_rate, peak_learning_rate

Decay = Literal["constant", "linear", "cosine", "exponential", "step", "plateau"]  # milestones asks for some
Scaling = Literal["none", "linear", "sqrt"]
DECAYS: tuple[Decay, ...] = get_args(Decay)
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)


def curve(config: OptimizerConfig, total: int, sequences: int = 80, epoch: int = 0, factor: float = 1.0) -> list[float]:
    """The rates of the steps 1 ... total."""
    schedule = Schedule(0, total, factor)
    steps = range(1, total + 1)
    return [learning_rate(config, schedule, step=step, epoch=epoch, sequences_per_step=sequences) for step in steps]


def test_defaults_give_the_learning_rate_throughout() -> None:
    assert curve(OptimizerConfig(learning_rate=0.5), 5) == [0.5] * 5


# --- scaling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "sequences", "factor"),
    [
        ("none", 20, 1.0),
        ("none", 80, 1.0),
        ("none", 1280, 1.0),
        ("linear", 20, 0.25),
        ("linear", 80, 1.0),
        ("linear", 1280, 16.0),
        ("sqrt", 20, 0.5),
        ("sqrt", 80, 1.0),
        ("sqrt", 1280, 4.0),
    ],
)
def test_peak_scales_with_the_global_batch(scaling: Scaling, sequences: int, factor: float) -> None:
    config = OptimizerConfig(learning_rate=0.01, learning_rate_scaling=scaling, base_batch_size=80)
    assert peak_learning_rate(config, sequences) == pytest.approx(0.01 * factor)
    assert max(curve(config, 10, sequences)) == pytest.approx(0.01 * factor)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("decay", DECAYS)
def test_rate_does_not_depend_on_how_the_global_batch_is_split(scaling: Scaling, decay: Decay) -> None:
    """The product of ranks, batch size and backward passes counts, not its factors."""
    config = OptimizerConfig(learning_rate_scaling=scaling, decay=decay, warmup_steps=3)
    splits = [ranks * batch * passes for ranks, batch, passes in ((1, 8, 10), (2, 4, 10), (4, 2, 10), (2, 8, 5), (8, 1, 10))]
    assert len({tuple(curve(config, 12, sequences)) for sequences in splits}) == 1


# --- warm-up ---------------------------------------------------------------------------------------------


def test_warmup_rises_linearly_to_the_peak() -> None:
    rates = curve(OptimizerConfig(learning_rate=1.0, warmup_steps=4), 8)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_warmup_never_starts_at_zero() -> None:
    assert curve(OptimizerConfig(warmup_steps=1000), 3)[0] > 0


def test_warmup_reaches_the_scaled_peak() -> None:
    config = OptimizerConfig(learning_rate=1.0, learning_rate_scaling="linear", base_batch_size=10, warmup_steps=5)
    assert curve(config, 6, 40)[4] == pytest.approx(4.0)


def test_warmup_longer_than_the_run_stays_below_the_peak() -> None:
    rates = curve(OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay="cosine"), 5)
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


# --- decay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("decay", ["linear", "cosine", "exponential"])
def test_decay_runs_from_the_peak_to_the_final_rate(decay: Decay, warmup: int) -> None:
    config = OptimizerConfig(
        learning_rate=2.0,
        decay=decay,
        warmup_steps=warmup,
        final_learning_rate_fraction=0.05,
    )
    rates = curve(config, 30)
    assert rates[warmup] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.1)
    falling = rates[max(0, warmup - 1) :] if warmup else rates
    assert all(later <= earlier for earlier, later in itertools.pairwise(falling))
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[warmup:]))


@pytest.mark.parametrize(
    ("decay", "quarter", "half"),
    [
        ("constant", 1.0, 1.0),
        ("linear", 0.775, 0.55),
        ("cosine", 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55),
        ("exponential", 0.1**0.25, 0.1**0.5),
    ],
)
def test_course_of_the_decay(decay: Decay, quarter: float, half: float) -> None:
    config = OptimizerConfig(learning_rate=1.0, decay=decay, final_learning_rate_fraction=0.1)
    rates = curve(config, 41)
    assert rates[10] == pytest.approx(quarter)
    assert rates[20] == pytest.approx(half)


@pytest.mark.parametrize(
    ("start", "factor", "rates"),
    [(4, 0.5, [1, 1, 1, 1, 0.5, 0.25, 0.125]), (0, 0.5, [0.5, 0.25, 0.125, 0.0625]), (6, 1 / 1.2, [1] * 6 + [1 / 1.2, 1 / 1.44])],
)
def test_a_factor_an_epoch(start: int, factor: float, rates: list[float]) -> None:
    """Zaremba's: the small model has 4 epochs at the peak and then halves, the medium one 6 and 1 / 1.2."""
    config = OptimizerConfig(learning_rate=1.0, decay="step", decay_start_epochs=start, decay_factor=factor)
    found = [curve(config, 3, epoch=epoch) for epoch in range(len(rates))]
    assert found == [pytest.approx([rate] * 3) for rate in rates]


def test_a_factor_after_some_epochs() -> None:
    config = OptimizerConfig(learning_rate=1.0, decay="milestones", decay_milestones=(1, 3), decay_factor=0.1)
    found = [curve(config, 3, epoch=epoch) for epoch in range(5)]
    assert found == [pytest.approx([rate] * 3) for rate in (1, 0.1, 0.1, 0.01, 0.01)]


@pytest.mark.parametrize("milestones", [(0, 2), (2, 2), (3, 2)])
def test_milestones_are_epochs_in_order(milestones: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="--decay-milestones must be numbers of epochs from 1 on"):
        OptimizerConfig(decay="milestones", decay_milestones=milestones)


def test_milestones_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="--decay milestones needs --decay-milestones"):
        OptimizerConfig(decay="milestones")


def test_a_plateau_divides_the_rate() -> None:
    config = OptimizerConfig(learning_rate=20.0, decay="plateau", warmup_steps=2)
    assert curve(config, 4, factor=0.25) == [2.5, 5.0, 5.0, 5.0]
    schedule = Schedule(3, 10)
    schedule.plateau(config)
    schedule.plateau(OptimizerConfig())
    assert schedule == Schedule(3, 10, 0.25)
    assert begun(schedule, 5, 20, is_of_same_length=False) == Schedule(3, 18, 0.25)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup", [0, 1])
def test_single_step_run_uses_the_peak(decay: Decay, warmup: int) -> None:
    config = OptimizerConfig(learning_rate=0.3, decay=decay, warmup_steps=warmup)
    assert curve(config, 1) == pytest.approx([0.3])


@settings(max_examples=200, deadline=None)
@given(
    decay=st.sampled_from(DECAYS),
    scaling=st.sampled_from(SCALINGS),
    warmup=st.integers(0, 50),
    total=st.integers(1, 80),
    final=st.floats(1e-6, 1.0),
    sequences=st.integers(1, 10_000),
)
def test_every_rate_is_positive_and_at_most_the_peak(
    decay: Decay, scaling: Scaling, warmup: int, total: int, final: float, sequences: int
) -> None:
    config = OptimizerConfig(
        decay=decay,
        learning_rate_scaling=scaling,
        warmup_steps=warmup,
        final_learning_rate_fraction=final,
    )
    peak = peak_learning_rate(config, sequences)
    for rate in curve(config, total, sequences):
        assert 0 < rate <= peak * (1 + 1e-12)
