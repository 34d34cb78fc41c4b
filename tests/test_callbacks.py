"""Callbacks from Python: rank 0 gives them every row, and one that raises ends the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launcher
import pools
import pytest
from conftest import INSTALLED

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.errors import ConfigError


def config_of(framework: str, out: Path) -> hvd_lm.RunConfig:
    return hvd_lm.RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=out,
        steps=4,
        threads=1,
        validation_every=2,
        model=hvd_lm.ModelConfig(vocabulary_size=60, embedding_size=6, hidden_size=8),
        data=hvd_lm.DataConfig(batch_size=2, sequence_length=8),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=2),
    )


def test_each_has_every_row_and_may_do_with_it_what_it_likes(framework: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    hvd_lm.train(config_of(framework, tmp_path), callbacks=[dict.clear, rows.append])
    assert rows == launcher.metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert ["validation_loss" in row for row in rows] == [False, True, False, True]


def test_one_that_raises_ends_the_run(tmp_path: Path) -> None:
    def tracker(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise ConnectionError("no answer\nfrom the server")

    with pytest.raises(ConfigError, match=r"the callback .*tracker raised ConnectionError: no answer from the server") as caught:
        hvd_lm.train(config_of(INSTALLED[0], tmp_path), callbacks=[tracker])
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert [row["step"] for row in launcher.metrics(tmp_path)] == [1, 2, 3]
    assert checkpoints.newest_step(tmp_path) == 3


@pytest.mark.ranks
def test_rank_0_alone_calls_and_all_ranks_end(framework: str, tmp_path: Path) -> None:
    found = pools.body("called_back", 2, framework, tmp_path)
    assert found[0]["steps"] == [1, 2, 3]
    assert found[1]["steps"] == []
    assert [rank["kind"] for rank in found] == ["ConfigError", "ConfigError"]
    assert "raised ValueError: enough" in found[1]["message"]
    assert checkpoints.newest_step(tmp_path) == 3
