"""Drawing a token: temperature, top-k and top-p as their papers say, seeds, ties and extremes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.errors import ConfigError
from hvd_lm.generation.sampling import SamplingConfig, draw

LOGITS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30).map(lambda values: np.array(values, np.float32))


def shares(logits: list[float], config: SamplingConfig, count: int = 20_000) -> np.ndarray:
    generator = np.random.default_rng(1)
    drawn = [draw(np.array(logits, np.float32), config, generator) for _ in range(count)]
    return np.bincount(drawn, minlength=len(logits)) / count


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_are_those_of_the_softmax(temperature: float) -> None:
    logits = [0.0, 1.0, 2.0, -1.0]
    found = shares(logits, SamplingConfig(temperature))
    np.testing.assert_allclose(found, softmax(np.array(logits) / temperature), atol=0.015)


def test_top_k_draws_from_the_likeliest() -> None:
    found = shares([0.0, 3.0, 2.0, 1.0], SamplingConfig(top_k=2))
    np.testing.assert_allclose(found, [0, *softmax(np.array([3.0, 2.0])), 0], atol=0.015)


def test_top_p_draws_from_the_smallest_set_that_has_p() -> None:
    logits = np.log([0.4, 0.1, 0.3, 0.2])
    np.testing.assert_allclose(shares(list(logits), SamplingConfig(top_p=0.65)), [4 / 7, 0, 3 / 7, 0], atol=0.015)
    np.testing.assert_allclose(shares(list(logits), SamplingConfig(top_p=0.75)), [4 / 9, 0, 3 / 9, 2 / 9], atol=0.015)
    np.testing.assert_allclose(shares(list(logits), SamplingConfig(top_p=0.01)), [1, 0, 0, 0])


def test_top_p_of_what_top_k_leaves() -> None:
    logits = np.log([0.4, 0.1, 0.3, 0.2])
    # Of the two likeliest the first has 4/7 alone.
    np.testing.assert_allclose(shares(list(logits), SamplingConfig(top_k=2, top_p=0.55)), [1, 0, 0, 0])


@given(logits=LOGITS, seed=st.integers(0, 99), temperature=st.floats(0, 10), top_k=st.integers(1, 40), top_p=st.floats(0.001, 1))
def test_what_is_drawn_is_allowed(logits: np.ndarray, seed: int, temperature: float, top_k: int, top_p: float) -> None:
    config = SamplingConfig(temperature, top_k, top_p, seed)
    token = draw(logits, config, np.random.default_rng(seed))
    assert token == draw(logits, config, np.random.default_rng(seed))
    assert logits[token] >= np.sort(logits)[::-1][min(top_k, len(logits)) - 1]
    if temperature == 0 or top_k == 1:
        assert logits[token] == logits.max()
    # The tokens above the one drawn have less than top-p together.
    if temperature > 0.01:
        likelier = softmax(logits.astype(np.float64) / temperature)[logits > logits[token]].sum()
        assert likelier < top_p + 1e-9


@given(logits=LOGITS, place=st.integers(0, 29), seed=st.integers(0, 99))
def test_what_is_impossible_is_never_drawn(logits: np.ndarray, place: int, seed: int) -> None:
    logits = np.append(logits, np.float32(0))
    logits[place % len(logits)] = -np.inf
    if np.isfinite(logits).any():
        for temperature in (0, 0.001, 1, 1000):
            assert draw(logits, SamplingConfig(temperature), np.random.default_rng(seed)) != place % len(logits)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_k": 0}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, float], flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag} must"):
        SamplingConfig(**settings)  # type: ignore[arg-type]
