"""The optimizer divided over the data ranks: the figures of one process, a part of the moments each, the same checkpoints."""

from __future__ import annotations

from pathlib import Path

import launcher
import numpy as np
import pools
import pytest
from grids import alone, assert_same_figures, on_grid

from hvd_lm import checkpoint as checkpoints
from hvd_lm.config import ModelConfig, TopologyConfig
from hvd_lm.job.topology import Topology
from hvd_lm.model.split import moment_shares, shares
from hvd_lm.model.stages import parameters


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "case"), [(2, "tied, with dropout"), (3, "untied")])
def test_figures_are_those_of_one_process(framework: str, ranks: int, case: str) -> None:
    assert_same_figures(on_grid(framework, ranks, case, split="optimizer"), alone(framework, case))


@pytest.mark.ranks
def test_a_run_goes_on_with_and_without_the_split(framework: str, tmp_path: Path) -> None:
    """Bit for bit under the split, and from its checkpoint on one rank; halves travel."""

    def train(out: str, steps: int, ranks: int, *flags: str) -> list[float]:
        pools.hvd_lm(
            ranks, "train", "--framework", framework, "--out", tmp_path / out, *launcher.TINY, "--hidden-size", "16", "--steps",
            str(steps), "--batch-size", str(4 // ranks), "--learning-rate", "0.02", "--deterministic", "--validation-share", "0",
            *flags,
        )  # fmt: skip
        return launcher.losses(tmp_path / out)

    split = ("--split", "optimizer", "--compression", "fp16")
    whole = train("whole", 6, 2, *split)
    train("parts", 3, 2, *split)
    assert train("parts", 6, 2, *split, "--resume", "auto") == whole
    found, expected = checkpoints.load(tmp_path / "parts"), checkpoints.load(tmp_path / "whole")
    for name, moment in expected.optimizer_state.moments.items():
        assert found.optimizer_state.moments[name].tobytes() == moment.tobytes(), name
    plain = train("plain", 6, 1)
    np.testing.assert_allclose(whole, plain, rtol=1e-3)
    np.testing.assert_allclose(
        train("whole", 9, 1, "--resume", "auto")[-1], train("plain", 9, 1, "--resume", "auto")[-1], rtol=2e-3
    )


def test_who_holds_which_moments() -> None:
    config = ModelConfig(vocabulary_size=11, embedding_size=4, hidden_size=4, layers=1)
    topologies = [Topology(rank, 3, 1, "optimizer") for rank in range(3)]
    assert all(share.divided_over is None for topology in topologies for share in shares(config, topology).values())
    held = [moment_shares(config, topology) for topology in topologies]
    for name in held[0]:
        rows = [list(of_rank[name].rows) for of_rank in held]
        if name == "embedding":
            assert rows == [list(range(11))] * 3, "of a looked-up parameter a few rows travel"
        else:
            assert [row for of_rank in rows for row in of_rank] == list(range(parameters(config)[name].shape[0]))
    few = moment_shares(config, Topology(0, 12, 1, "optimizer"))
    assert len(few["output_bias"].rows) == 11, "fewer rows than ranks are not divided"
    assert TopologyConfig(split="optimizer").model_parallel == 1
