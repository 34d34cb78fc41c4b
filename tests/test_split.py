"""Who holds which rows of the parameters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.config import ModelConfig
from hvd_lm.errors import ConfigError
from hvd_lm.job.topology import Topology
from hvd_lm.model.split import blocks, divide, shares
from hvd_lm.model.stages import parameters
from hvd_lm.model.weights import initial_rows, initial_weights


@given(count=st.integers(0, 1000), parts=st.integers(1, 50))
def test_parts_are_all_rows_once_and_as_equal_as_can_be(count: int, parts: int) -> None:
    divided = divide(count, parts)
    assert [row for part in divided for row in part] == list(range(count))
    lengths = [len(part) for part in divided]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(start=st.integers(0, 50), length=st.integers(0, 5000), width=st.integers(1, 10_000))
def test_blocks_are_all_rows_once(start: int, length: int, width: int) -> None:
    pieces = list(blocks(range(start, start + length), (length, width)))
    assert [row for piece in pieces for row in piece] == list(range(start, start + length))


@given(vocabulary=st.integers(3, 60), data=st.integers(1, 3), model=st.integers(1, 3), tied=st.booleans())
def test_a_model_group_holds_everything(vocabulary: int, data: int, model: int, tied: bool) -> None:
    config = ModelConfig(vocabulary_size=vocabulary, embedding_size=4, hidden_size=4, tie_embedding=tied)
    split = "vocabulary" if model > 1 else None
    for group in Topology(0, data, model).model_groups():
        of_ranks = [shares(config, Topology(rank, data, model, split)) for rank in group]
        for name, parameter in parameters(config).items():
            held = [of_rank[name] for of_rank in of_ranks]
            if parameter.split == "rows" and model > 1:
                assert [row for share in held for row in share.rows] == list(range(parameter.shape[0]))
                assert {(share.held_by, share.divided_over) for share in held} == {("data", "model")}
            else:
                assert all(share.shape == parameter.shape for share in held)
                assert {(share.held_by, share.divided_over) for share in held} == {("readers", None)}


def test_more_model_ranks_than_words_are_refused() -> None:
    config = ModelConfig(vocabulary_size=3, embedding_size=4, hidden_size=4)
    with pytest.raises(ConfigError, match="vocabulary of 3 words"):
        shares(config, Topology(0, 1, 4, "vocabulary"))


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_initial_values_are_those_of_all(tied: bool) -> None:
    """Without what comes before them: an odd width puts the beginning of a row between two states of the generator."""
    config = ModelConfig(vocabulary_size=11, embedding_size=7, hidden_size=7, layers=1, tie_embedding=tied)
    whole = initial_weights(config, seed=3)
    for name, rows in initial_rows(config, seed=3).items():
        assert rows.shape == whole[name].shape
        for start in range(len(whole[name])):
            np.testing.assert_array_equal(rows[start : start + 3], whole[name][start : start + 3])
