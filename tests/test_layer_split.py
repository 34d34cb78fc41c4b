"""Layers divided over a pipeline of ranks: the figures of one process, whatever the grid."""

from __future__ import annotations

import pytest
from grids import alone, assert_halves_travelled, assert_same_figures, on_grid

from hvd_lm.config import ModelConfig
from hvd_lm.errors import ConfigError
from hvd_lm.job.topology import Topology
from hvd_lm.model.pipeline import stages_of_ranks
from hvd_lm.model.split import shares
from hvd_lm.model.stages import stages

STEPS = 18


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("data", "model", "case", "steps"),
    [(1, 2, "untied", STEPS), (2, 2, "tied, with dropout", 30), (1, 3, "three layers", STEPS)],
)
def test_figures_are_those_of_one_process(framework: str, data: int, model: int, case: str, steps: int) -> None:
    expected = alone(framework, case)[:steps]
    assert (expected[:, 1] > 0.2).any(), "clipping took place"
    of_ranks = on_grid(framework, data * model, case, split="layers", data_parallel=data, model_parallel=model, steps=steps)
    assert_same_figures(of_ranks, expected)


@pytest.mark.ranks
def test_activations_travel_as_halves(framework: str) -> None:
    of_ranks = on_grid(framework, 2, "untied", split="layers", model_parallel=2, compression="fp16", steps=STEPS)
    assert_halves_travelled(of_ranks, alone(framework, "untied")[:STEPS])


# --- who holds what --------------------------------------------------------------------------------------

REFERENCE = ModelConfig(vocabulary_size=10_000)


def test_the_dearest_rank_is_as_cheap_as_can_be() -> None:
    kinds = [[stages(REFERENCE)[place].kind for place in of_rank] for of_rank in stages_of_ranks(REFERENCE, 2)]
    assert kinds == [["lookup", "lstm", "lstm"], ["output"]]
    large = ModelConfig(vocabulary_size=50_000, layers=3, dropout=0.1)
    kinds = [[stages(large)[place].kind for place in of_rank] for of_rank in stages_of_ranks(large, 3)]
    assert kinds == [["lookup", "drop", "lstm", "drop"], ["lstm", "drop", "lstm", "drop"], ["output"]]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_parameter_has_its_rank(tied: bool, ranks: int) -> None:
    model = ModelConfig(vocabulary_size=9, embedding_size=4, hidden_size=4, tie_embedding=tied)
    held = [shares(model, Topology(rank, 1, ranks, "layers")) for rank in range(ranks)]
    for name in held[0]:
        holders = [rank for rank in range(ranks) if held[rank][name].rows]
        at_both_ends = tied and name == "embedding" and ranks > 1
        assert holders == ([0, ranks - 1] if at_both_ends else holders[:1])
        assert sum(held[rank][name].counts for rank in holders) == 1
        assert all(held[rank][name].held_by == ("ends" if at_both_ends else "data") for rank in holders)


def test_more_ranks_than_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot divide 2 layer"):
        stages_of_ranks(REFERENCE, 4)
