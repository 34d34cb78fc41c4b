"""Dropout masks: the same for a stream on whichever rank, different everywhere else, of the right share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hvd_lm.config import ModelConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model.noise import dropout_masks, dropout_widths, keep_probability, step_noise, weight_masks
from hvd_lm.model.stages import stages


def masks_of(
    rate: float | tuple[float, ...] = 0.5,
    *,
    widths: tuple[int, ...] = (24, 32, 32),
    sequence_length: int = 8,
    stream_ids: range = range(8),
    micro_batch: int = 0,
    seed: int = 1,
    locked: bool = False,
) -> list[NDArray[np.bool_]]:
    return dropout_masks(
        rate,
        widths=widths,
        sequence_length=sequence_length,
        stream_ids=stream_ids,
        micro_batch=micro_batch,
        seed=seed,
        locked=locked,
    )


def test_a_place_drops_before_each_layer_and_the_output() -> None:
    model = ModelConfig(vocabulary_size=9, embedding_size=3, hidden_size=5, layers=2, dropout=0.5)
    assert dropout_widths(model) == [3, 5, 5]
    assert dropout_widths(replace(model, hidden_size=(7, 4))) == [3, 7, 4]


def test_shapes_and_type() -> None:
    masks = masks_of(widths=(3, 5, 5), sequence_length=7, stream_ids=range(4))
    assert [mask.shape for mask in masks] == [(7, 4, 3), (7, 4, 5), (7, 4, 5)]
    assert {mask.dtype for mask in masks} == {np.dtype(bool)}


def test_rate_zero_makes_no_masks() -> None:
    assert masks_of(0.0) == []
    assert keep_probability(0.0) == 1.0


def test_masks_are_a_pure_function() -> None:
    for first, second in zip(masks_of(), masks_of(), strict=True):
        np.testing.assert_array_equal(first, second)


@settings(max_examples=25, deadline=None)
@given(
    rate=st.floats(0.01, 0.9),
    micro_batch=st.integers(0, 10**6),
    seed=st.integers(0, 2**40),
    split=st.sampled_from([(1, 8), (2, 4), (4, 2), (8, 1)]),
)
def test_stream_has_its_mask_whatever_the_split_over_ranks(
    rate: float, micro_batch: int, seed: int, split: tuple[int, int]
) -> None:
    ranks, batch_size = split
    whole = masks_of(rate, micro_batch=micro_batch, seed=seed)
    for rank in range(ranks):
        streams = range(rank * batch_size, (rank + 1) * batch_size)
        for mask, part in zip(whole, masks_of(rate, micro_batch=micro_batch, seed=seed, stream_ids=streams), strict=True):
            np.testing.assert_array_equal(mask[:, streams.start : streams.stop], part)


def agreement(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Share of equal positions: 0.5 for independent masks of rate 0.5."""
    return float((first == second).mean())


def test_masks_differ_across_streams() -> None:
    mask = masks_of(sequence_length=64)[0]
    for stream in range(1, mask.shape[1]):
        assert agreement(mask[:, 0], mask[:, stream]) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("other", [{"seed": 2}, {"micro_batch": 1}, {"micro_batch": 2**32}, {"seed": 2**32 + 1}, {"seed": 0}])
def test_masks_differ_across_seeds_and_micro_batches(other: dict[str, Any]) -> None:
    for first, second in zip(masks_of(sequence_length=64), masks_of(sequence_length=64, **other), strict=True):
        assert agreement(first, second) == pytest.approx(0.5, abs=0.03)


def test_masks_differ_across_places() -> None:
    masks = masks_of(sequence_length=64, widths=(32, 32, 32))
    for first in range(3):
        for second in range(first):
            assert agreement(masks[first], masks[second]) == pytest.approx(0.5, abs=0.03)


def test_locked_masks_are_one_for_all_steps() -> None:
    masks = masks_of(locked=True, sequence_length=7, stream_ids=range(4), widths=(300, 500))
    assert [mask.shape for mask in masks] == [(1, 4, 300), (1, 4, 500)]
    for mask, of_rank in zip(masks, masks_of(locked=True, stream_ids=range(2, 4), widths=(300, 500)), strict=True):
        np.testing.assert_array_equal(mask[:, 2:], of_rank)
        assert mask.mean() == pytest.approx(0.5, abs=0.05)
        assert agreement(mask[:, 0], mask[:, 1]) == pytest.approx(0.5, abs=0.1)


def test_places_have_rates_of_their_own() -> None:
    """A rate has no say in the masks of other places."""
    model = ModelConfig(hidden_size=5, layers=3, dropout=0.3, input_dropout=0.6, output_dropout=0.0)
    assert model.dropout_rates == (0.6, 0.3, 0.3, 0.0)
    assert replace(model, layers=1).dropout_rates == (0.6, 0.0)
    assert replace(model, input_dropout=None, output_dropout=None).dropout_rates == (0.3,) * 4
    same = masks_of(0.3)
    input_mask, output_mask = masks_of((0.6, 0.0, 0.3))
    np.testing.assert_array_equal(output_mask, same[2])
    assert input_mask.mean() == pytest.approx(0.4, abs=0.05)


WORDS = ModelConfig(vocabulary_size=20_000, embedding_dropout=0.1)


def words_of(**which: int) -> NDArray[np.bool_]:
    words_V = step_noise(WORDS, **which).words_V
    assert words_V is not None
    return words_V


def test_words_drop_for_a_whole_step() -> None:
    noise = step_noise(WORDS, step=3, seed=1)
    inputs = np.random.default_rng(0).integers(0, 20_000, (7, 5), dtype=np.int32)
    activations = masks_of(widths=(4,), sequence_length=7, stream_ids=range(5))
    words, of_activations = noise.masks(inputs, activations)
    assert (words.shape, words.dtype) == ((7, 5, 1), np.dtype(bool))
    assert of_activations is activations[0]
    words_V = words_of(step=3, seed=1)
    assert words_V.mean() == pytest.approx(0.9, abs=0.01)
    np.testing.assert_array_equal(words[..., 0], words_V[inputs])
    np.testing.assert_array_equal(noise.masks(inputs.T, [])[0], words.transpose(1, 0, 2))
    assert not noise.masks(np.full((2, 2), np.argmin(words_V), np.int32), [])[0].any()


@pytest.mark.parametrize("other", [{"step": 4}, {"seed": 2}, {"seed": 2**40}])
def test_other_steps_drop_other_words(other: dict[str, int]) -> None:
    first, same, second = (words_of(**{"step": 3, "seed": 1} | more) for more in ({}, {}, other))
    np.testing.assert_array_equal(first, same)
    assert agreement(first, second) == pytest.approx(0.82, abs=0.02)


def test_without_embedding_dropout_no_words_drop() -> None:
    assert step_noise(replace(WORDS, embedding_dropout=0.0), step=1, seed=1).masks(np.zeros((2, 2), np.int32), []) == []


WEIGHTS = ModelConfig(vocabulary_size=9, embedding_size=30, hidden_size=(40, 50), weight_dropout=0.2)


def test_weights_drop_for_a_whole_step() -> None:
    names = ["lstm.0.recurrent_kernel", "lstm.1.recurrent_kernel"]
    masks, others = (weight_masks(WEIGHTS, [*names, "embedding"], step=step, seed=1) for step in (3, 4))
    assert [(name, mask.shape) for name, mask in masks.items()] == list(zip(names, [(160, 40), (200, 50)], strict=True))
    for name, mask in masks.items():
        assert mask.mean() == pytest.approx(0.8, abs=0.02)
        assert agreement(mask, others[name]) == pytest.approx(0.68, abs=0.03)
        (alone,) = weight_masks(WEIGHTS, [name], step=3, seed=1).values()
        np.testing.assert_array_equal(alone, mask)
    assert agreement(masks[names[0]], masks[names[1]][:160, :40]) == pytest.approx(0.68, abs=0.03)
    assert weight_masks(replace(WEIGHTS, weight_dropout=0.0), names, step=3, seed=1) == {}


def test_of_a_projection_what_recurs_drops() -> None:
    model = replace(WEIGHTS, projection_size=20)
    (mask,) = weight_masks(model, ["lstm.1.recurrent_kernel"], step=1, seed=1).values()
    assert mask.shape == (200, 20)


def test_a_model_without_noise_has_the_same_weights_and_drops_nothing() -> None:
    noisy = replace(WORDS, dropout=0.2, locked_dropout=True, input_dropout=0.4, output_dropout=0.5, weight_dropout=0.1)
    noisy = replace(noisy, activation_penalty=2.0, temporal_penalty=1.0)
    assert noisy.without_noise() == ModelConfig(vocabulary_size=20_000)
    assert [stage.kind for stage in stages(noisy) if stage.parameters] == [stage.kind for stage in stages(noisy.without_noise())]


def test_seed_and_stream_are_not_interchangeable() -> None:
    first, second = masks_of(seed=1, stream_ids=range(2, 3))[0], masks_of(seed=2, stream_ids=range(1, 2))[0]
    assert agreement(first, second) == pytest.approx(0.5, abs=0.15)


def test_long_masks_do_not_repeat_the_next_micro_batch() -> None:
    """Counters of neighbouring masks must not overlap, however many numbers a mask takes."""
    first = masks_of(widths=(512,), sequence_length=256, stream_ids=range(1), micro_batch=0)[0].ravel()
    second = masks_of(widths=(512,), sequence_length=256, stream_ids=range(1), micro_batch=1)[0].ravel()
    start = second[:256]
    windows = np.lib.stride_tricks.sliding_window_view(first, 256)
    assert not (windows == start).all(axis=1).any()


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25, 0.5, 0.65, 0.9, 0.99])
def test_kept_share_is_one_minus_the_rate(rate: float) -> None:
    mask = masks_of(rate, widths=(1000,), sequence_length=50, stream_ids=range(4))[0]
    deviation = (rate * (1 - rate) / mask.size) ** 0.5
    assert mask.mean() == pytest.approx(1 - rate, abs=5 * deviation)


@settings(max_examples=100, deadline=None)
@given(rate=st.floats(0.0, 0.999))
def test_keep_probability_is_one_minus_the_rate(rate: float) -> None:
    assert keep_probability(rate) == pytest.approx(1 - rate, abs=1e-5)
    assert keep_probability(rate) > 0


def test_no_accepted_rate_divides_by_zero() -> None:
    assert keep_probability(ModelConfig(dropout=0.99).dropout) == pytest.approx(0.01, abs=1e-5)
    with pytest.raises(ConfigError, match="--dropout"):
        ModelConfig(dropout=0.999999)
