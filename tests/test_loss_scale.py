"""Dynamic loss scaling: halves at an overflow, doubles after steps without one, gives up at the smallest scale."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_lm.errors import TrainingError
from hvd_lm.training.loss_scale import LARGEST, SMALLEST, LossScale


def test_overflow_halves_the_scale_and_counts_the_skipped_step() -> None:
    loss_scale = LossScale(1024.0, growth_steps=10)
    loss_scale.update(overflow=True)
    loss_scale.update(overflow=True)
    assert (loss_scale.scale, loss_scale.skipped_steps) == (256.0, 2)


def test_scale_doubles_after_growth_steps() -> None:
    loss_scale = LossScale(1024.0, growth_steps=3)
    scales = []
    for _ in range(7):
        loss_scale.update(overflow=False)
        scales.append(loss_scale.scale)
    assert scales == [1024, 1024, 2048, 2048, 2048, 4096, 4096]
    assert loss_scale.skipped_steps == 0


def test_overflow_starts_the_count_of_good_steps_again() -> None:
    loss_scale = LossScale(1024.0, growth_steps=3)
    for overflow in (False, False, True, False, False):
        loss_scale.update(overflow)
    assert loss_scale.scale == 512.0
    loss_scale.update(overflow=False)
    assert loss_scale.scale == 1024.0


def test_scale_stops_growing_at_the_largest() -> None:
    loss_scale = LossScale(LARGEST / 2, growth_steps=1)
    for _ in range(5):
        loss_scale.update(overflow=False)
    assert loss_scale.scale == LARGEST


def test_overflow_at_the_smallest_scale_ends_training() -> None:
    loss_scale = LossScale(SMALLEST, growth_steps=1)
    with pytest.raises(TrainingError) as caught:
        loss_scale.update(overflow=True)
    message = str(caught.value)
    assert "1 steps skipped" in message
    assert "--learning-rate" in message
    assert "--compression none" in message
    assert "\n" not in message
    assert loss_scale == LossScale(SMALLEST, growth_steps=1), "a checkpoint of it can be gone on with"


def test_gradient_that_always_overflows_ends_training() -> None:
    loss_scale = LossScale(8192.0, growth_steps=2000)
    for _ in range(37):  # 2^13 down to 2^-24
        loss_scale.update(overflow=True)
    with pytest.raises(TrainingError, match="38 steps skipped"):
        loss_scale.update(overflow=True)


@settings(max_examples=100, deadline=None)
@given(overflows=st.lists(st.booleans(), max_size=60), growth_steps=st.integers(1, 5))
def test_scale_stays_a_power_of_two_within_bounds(overflows: list[bool], growth_steps: int) -> None:
    """A power of two: scaling and unscaling then lose no bit of a gradient."""
    loss_scale = LossScale(2.0**22, growth_steps)
    powers = {2.0**k for k in range(-24, 25)}
    for overflow in overflows:
        if overflow and loss_scale.scale == SMALLEST:
            break
        loss_scale.update(overflow)
        assert loss_scale.scale in powers


@settings(max_examples=50, deadline=None)
@given(overflows=st.lists(st.booleans(), max_size=40))
def test_ranks_that_see_the_same_gradients_keep_the_same_scale(overflows: list[bool]) -> None:
    ranks = [LossScale(8192.0, growth_steps=4) for _ in range(3)]
    for overflow in overflows[:36]:
        for rank in ranks:
            rank.update(overflow)
        assert ranks[0] == ranks[1] == ranks[2]
    assert ranks[0].skipped_steps == sum(overflows[:36])
