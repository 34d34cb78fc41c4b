"""A vocabulary divided over the ranks of a model group: the figures of one process, whatever the grid."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pools
import pytest

pytestmark = pytest.mark.ranks

PLAIN = {"vocabulary_size": 51}
TIED = {"vocabulary_size": 50, "tie_embedding": True, "embedding_size": 16, "dropout": 0.25}
CASES = {"plain": PLAIN, "tied, with dropout": TIED}


def on_grid(framework: str, data: int, model: int, **settings: Any) -> list[dict[str, Any]]:
    """What each rank of a grid says of the run."""
    settings |= {"data_parallel": data, "model_parallel": model}
    return pools.body("grid", data * model, framework, json.dumps(settings))


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str], Any]:
    """Figures of one process, by framework and case; filled as they are asked for."""
    return {}


def figures_alone(alone: dict[tuple[str, str], Any], framework: str, case: str) -> Any:
    if (framework, case) not in alone:
        (of_one,) = on_grid(framework, 1, 1, **CASES[case])
        alone[framework, case] = of_one
    return alone[framework, case]


@pytest.mark.parametrize(
    ("data", "model", "case", "more"),
    [
        (1, 2, "tied, with dropout", {}),
        (1, 3, "plain", {"logits_together": 1000}),  # a few tokens at a time
        (2, 2, "plain", {}),
    ],
)
def test_figures_are_those_of_one_process(
    framework: str, data: int, model: int, case: str, more: dict[str, int], alone: dict[tuple[str, str], Any]
) -> None:
    expected = figures_alone(alone, framework, case)
    losses, norms = np.array(expected["figures"]).T
    assert losses[-1] < losses[0] - 0.5
    assert (norms > 0.2).any(), "clipping took place"
    of_ranks = on_grid(framework, data, model, **CASES[case], **more)
    for result in of_ranks:
        assert result["figures"] == of_ranks[0]["figures"], "all ranks see the same"
    np.testing.assert_allclose(np.array(of_ranks[0]["figures"])[:, 0], losses, rtol=1e-5)
    np.testing.assert_allclose(np.array(of_ranks[0]["figures"])[:, 1], norms, rtol=1e-4)
    held = [row for result in of_ranks[:model] for row in range(*result["rows"]["embedding"])]
    assert held == list(range(CASES[case]["vocabulary_size"])), "together they hold all, once"


def test_activations_travel_as_halves(framework: str, alone: dict[tuple[str, str], Any]) -> None:
    expected = np.array(figures_alone(alone, framework, "plain")["figures"])
    compressed = np.array(on_grid(framework, 1, 2, **PLAIN, compression="fp16")[0]["figures"])
    np.testing.assert_allclose(compressed, expected, rtol=5e-3)
    assert (compressed != expected).mean() > 0.8, "fp16 was on the wire"
