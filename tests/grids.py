"""Runs of tests/ranks/grid.py on grids of started ranks, and the figures of one process that they are judged by."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pools
from numpy.typing import NDArray

CASES: dict[str, dict[str, Any]] = {
    "untied": {"vocabulary_size": 51},
    "tied, with dropout": {"vocabulary_size": 50, "tie_embedding": True, "embedding_size": 16, "dropout": 0.25},
    "sampled": {"vocabulary_size": 51, "softmax": "sampled", "sampled_words": 12},
    "sampled, tied": {
        "vocabulary_size": 51,
        "softmax": "sampled",
        "sampled_words": 12,
        "tie_embedding": True,
        "embedding_size": 16,
    },
    "adaptive": {"vocabulary_size": 51, "dropout": 0.25, "softmax": "adaptive", "adaptive_cutoffs": [8, 20]},
    "projected": {"vocabulary_size": 51, "hidden_size": [16, 20], "projection_size": 8, "dropout": 0.25},
    "noisy": {
        "vocabulary_size": 51,
        "hidden_size": [16, 20],
        "dropout": 0.25,
        "locked_dropout": True,
        "input_dropout": 0.4,
        "output_dropout": 0.1,
        "embedding_dropout": 0.2,
        "weight_dropout": 0.3,
        "activation_penalty": 2.0,
        "temporal_penalty": 1.0,
    },
    "three layers": {"vocabulary_size": 51, "layers": 3, "tie_embedding": True, "embedding_size": 16, "dropout": 0.25},
}


def on_grid(framework: str, ranks: int, case: str, *, controller: str = "gloo", **settings: Any) -> list[dict[str, Any]]:
    """What each rank says of the run."""
    return pools.body("grid", ranks, framework, json.dumps(CASES[case] | settings), controller=controller)


@cache
def alone(framework: str, case: str) -> NDArray[np.float64]:
    """Loss and norm of every step of one process; run once for all that are judged by it."""
    return np.array(on_grid(framework, 1, case)[0]["figures"])


def assert_same_figures(of_ranks: list[dict[str, Any]], expected: NDArray[np.float64]) -> None:
    """On all ranks alike those of one process."""
    assert all(result["figures"] == of_ranks[0]["figures"] for result in of_ranks), "all ranks see the same"
    found = np.array(of_ranks[0]["figures"])
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=1e-4)


def assert_halves_travelled(of_ranks: list[dict[str, Any]], expected: NDArray[np.float64]) -> None:
    """Nearly the figures of one process."""
    found = np.array(of_ranks[0]["figures"])
    np.testing.assert_allclose(found, expected, rtol=5e-3)
    assert (found != expected).mean() > 0.8, "fp16 was on the wire"
