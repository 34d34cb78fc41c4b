"""What AWD-LSTM (Merity et al. 2017, arXiv:1708.02182) adds to a training: the same whatever the ranks, and after a break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grids
import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED

pytestmark = pytest.mark.ranks

NOISE: dict[str, Any] = {
    "dropout": 0.2,
    "locked_dropout": True,
    "input_dropout": 0.3,
    "output_dropout": 0.1,
    "embedding_dropout": 0.15,
    "weight_dropout": 0.2,
    "activation_penalty": 2.0,
    "temporal_penalty": 1.0,
}
ALL: dict[str, Any] = {**NOISE, "random_lengths": True}
"""What a whole training has, too."""
PIPELINE = ["--model-parallel", "2", "--split", "layers"]


def as_flags(settings: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in settings.items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return flags


def test_ranks_times_micro_batches_is_what_counts(framework: str) -> None:
    """The same tokens as (N=8, R=1), (N=4, R=2), (N=2, R=4)."""
    figures = {}
    for ranks in (1, 2, 4):
        of_ranks = pools.body("same_tokens", ranks, framework, json.dumps(NOISE))
        assert all(result == of_ranks[0] for result in of_ranks), "all ranks see the same figures"
        figures[ranks] = np.array(of_ranks[0])
    plain = np.array(pools.body("same_tokens", 1, framework)[0])
    assert (np.abs(figures[1] - plain) > 1e-4).any(axis=1).all(), "noise has its part in every step"
    for ranks in (2, 4):
        np.testing.assert_allclose(figures[ranks][:, 0], figures[1][:, 0], rtol=1e-5)
        np.testing.assert_allclose(figures[ranks][:, 1], figures[1][:, 1], rtol=1e-4)


@pytest.mark.parametrize("split", ["vocabulary", "layers", "optimizer"])
def test_a_split_changes_nothing(framework: str, split: str) -> None:
    of_ranks = grids.on_grid(framework, 2, "noisy", model_parallel=1 if split == "optimizer" else 2, split=split)
    grids.assert_same_figures(of_ranks, grids.alone(framework, "noisy"))


def test_ranks_times_batch_is_what_counts(framework: str, tmp_path: Path) -> None:
    """By the command line: (R=1, B=8), (R=2, B=4), and in a pipeline of two ranks."""
    losses = []
    for ranks, flags in ((1, ["--batch-size", "8"]), (2, ["--batch-size", "4"]), (2, ["--batch-size", "8", *PIPELINE])):
        flags += ["--framework", framework, *launcher.SMALL, *as_flags(ALL), "--backward-passes-per-step", "2", "--steps", "20"]
        pools.hvd_lm(ranks, "train", "--out", out := tmp_path / str(len(losses)), *flags)
        losses.append(launcher.losses(out))
    for others in losses[1:]:
        np.testing.assert_allclose(others, losses[0], rtol=1e-5)


@pytest.mark.parametrize(("framework", "ranks"), [(INSTALLED[0], 2), (INSTALLED[-1], 1)])
def test_a_run_goes_on_bit_for_bit(framework: str, ranks: int, tmp_path: Path) -> None:
    flags = ["--framework", framework, *launcher.SMALL, *as_flags(ALL), "--backward-passes-per-step", "2", "--batch-size", "4"]
    for out, steps in (("whole", "20"), ("parts", "9"), ("parts", "20")):
        more = ["--threads", "1", "--deterministic", "--resume", "auto", "--steps", steps]
        pools.hvd_lm(ranks, "train", "--out", tmp_path / out, *flags, *more)
    assert launcher.losses(tmp_path / "parts") == launcher.losses(tmp_path / "whole")
    last = [launcher.metrics(tmp_path / out)[-1] for out in ("parts", "whole")]
    assert last[0]["perplexity"] == last[1]["perplexity"]
