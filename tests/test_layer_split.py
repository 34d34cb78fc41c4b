"""Layers divided over a pipeline of ranks: the figures of one process, whatever the grid."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pools
import pytest

from hvd_lm.config import ModelConfig
from hvd_lm.errors import ConfigError
from hvd_lm.job.topology import Topology
from hvd_lm.model.pipeline import stages_of_ranks
from hvd_lm.model.split import shares
from hvd_lm.model.stages import stages

CASES = {
    "untied": {"vocabulary_size": 51},
    "tied, with dropout": {"vocabulary_size": 50, "tie_embedding": True, "embedding_size": 16, "dropout": 0.25},
    "three layers": {"vocabulary_size": 51, "layers": 3, "tie_embedding": True, "embedding_size": 16, "dropout": 0.25},
}


def on_grid(framework: str, data: int, model: int, **settings: Any) -> list[dict[str, Any]]:
    if model > 1:
        settings |= {"split": "layers"}
    settings |= {"data_parallel": data, "model_parallel": model}
    return pools.body("grid", data * model, framework, json.dumps(settings))


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str], Any]:
    """Figures of one process, by framework and case; filled as they are asked for."""
    return {}


def figures_alone(alone: dict[tuple[str, str], Any], framework: str, case: str) -> Any:
    if (framework, case) not in alone:
        alone[framework, case] = np.array(on_grid(framework, 1, 1, **CASES[case])[0]["figures"])
    return alone[framework, case]


@pytest.mark.ranks
@pytest.mark.parametrize(("data", "model", "case"), [(1, 2, "untied"), (2, 2, "tied, with dropout"), (1, 3, "three layers")])
def test_figures_are_those_of_one_process(
    framework: str, data: int, model: int, case: str, alone: dict[tuple[str, str], Any]
) -> None:
    expected = figures_alone(alone, framework, case)
    assert (expected[:, 1] > 0.2).any(), "clipping took place"
    of_ranks = on_grid(framework, data, model, **CASES[case])
    assert all(result["figures"] == of_ranks[0]["figures"] for result in of_ranks), "all ranks see the same"
    np.testing.assert_allclose(np.array(of_ranks[0]["figures"])[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(np.array(of_ranks[0]["figures"])[:, 1], expected[:, 1], rtol=1e-4)


@pytest.mark.ranks
def test_activations_travel_as_halves(framework: str, alone: dict[tuple[str, str], Any]) -> None:
    expected = figures_alone(alone, framework, "untied")
    compressed = np.array(on_grid(framework, 1, 2, **CASES["untied"], compression="fp16")[0]["figures"])
    np.testing.assert_allclose(compressed, expected, rtol=5e-3)
    assert (compressed != expected).mean() > 0.8, "fp16 was on the wire"


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
