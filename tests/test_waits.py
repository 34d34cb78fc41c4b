"""How long ranks wait for gradients, in the metrics: whether for the link, or for each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import launcher
import pools
import pytest

import hvd_lm
from hvd_lm.adapters.waits import Waits
from hvd_lm.job.topology import Topology

SLOW = 0.4
"""Seconds of a window of the slow rank, beside those that it works."""


def test_ranks_tell_each_other() -> None:
    of_ranks = [Waits(Topology(rank, data_size=3, model_size=1)) for rank in range(3)]
    for own, waits in zip((0.5, 0.0, 2.0), of_ranks, strict=True):
        waits.hear([0.0] * 3)
        waits.note(own)
    told = [sum(column) for column in zip(*(waits.told for waits in of_ranks), strict=True)]
    assert of_ranks[2].figures() == {"communication_seconds": 2.0}, "of no step before"
    of_ranks[1].hear(told)
    of_ranks[1].note(0.25)
    assert of_ranks[1].figures() == {
        "communication_seconds": 0.25,
        "communication_seconds_least": 0.0,
        "communication_seconds_most": 2.0,
    }


@pytest.mark.ranks
def test_a_slow_rank_is_told_from_a_slow_link(framework: str, tmp_path: Path) -> None:
    pools.body("slow_rank", 2, framework, tmp_path, str(SLOW))
    rows = launcher.metrics(tmp_path)
    # The first steps build graphs, and the first one knows of none before it.
    for row in rows[2:]:
        assert SLOW / 2 < row["communication_seconds"] < row["seconds"]
        assert row["communication_seconds_most"] > SLOW / 2
        assert row["communication_seconds_least"] < row["communication_seconds_most"] - SLOW / 2


def test_one_process_waits_for_nobody(framework: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"framework": framework, "out": tmp_path, "steps": 2}
    hvd_lm.train(hvd_lm.RunConfig(**config, model=hvd_lm.ModelConfig(hidden_size=16, embedding_size=8)))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not any("communication" in name for row in rows for name in row)
