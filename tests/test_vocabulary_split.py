"""A vocabulary divided over the ranks of a model group: the figures of one process, whatever the grid."""

from __future__ import annotations

import pytest
from grids import CASES, alone, assert_halves_travelled, assert_same_figures, on_grid

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize(
    ("data", "model", "case", "more"),
    [
        (1, 2, "tied, with dropout", {}),
        (1, 3, "untied", {"logits_together": 1000}),  # a few tokens at a time
        (2, 2, "untied", {"steps": 12}),
    ],
)
def test_figures_are_those_of_one_process(framework: str, data: int, model: int, case: str, more: dict[str, int]) -> None:
    expected = alone(framework, case)
    losses, norms = expected.T
    assert losses[-1] < losses[0] - 0.25
    assert (norms > 0.2).any(), "clipping took place"
    of_ranks = on_grid(framework, data * model, case, data_parallel=data, model_parallel=model, **more)
    assert_same_figures(of_ranks, expected[: more.get("steps")])
    held = [row for result in of_ranks[:model] for row in range(*result["rows"]["embedding"])]
    assert held == list(range(CASES[case]["vocabulary_size"])), "together they hold all, once"


def test_activations_travel_as_halves(framework: str) -> None:
    of_ranks = on_grid(framework, 2, "untied", model_parallel=2, compression="fp16", steps=12)
    assert_halves_travelled(of_ranks, alone(framework, "untied")[:12])


def test_activations_beyond_halves_are_told(framework: str) -> None:
    """By the ranks, which look up rows of each other; nothing is applied."""
    of_ranks = on_grid(framework, 2, "untied", model_parallel=2, compression="fp16", embedding_factor=1e6, steps=2)
    assert [result["beyond"] for result in of_ranks] == [[[2, False]] * 2] * 2
