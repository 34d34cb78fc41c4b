"""Texts that a model writes while it is trained: those of its checkpoints, and no step is another for them."""

from __future__ import annotations

from pathlib import Path

import launcher
import pools
import pytest

import hvd_lm
from hvd_lm import checkpoint as checkpoints
from hvd_lm.errors import ConfigError

FLAGS = [*launcher.SMALL, "--batch-size", "4", "--backward-passes-per-step", "2", "--threads", "1", "--deterministic"]


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "more"), [(1, []), (2, ["--late-gradients"]), (2, ["--split", "optimizer"])])
def test_samples_are_written_by_the_weights_of_their_step(framework: str, ranks: int, more: list[str], tmp_path: Path) -> None:
    flags = ["--framework", framework, *FLAGS, "--steps", "7", "--checkpoint-every", "3", "--keep-checkpoints", "9", *more]
    pools.hvd_lm(ranks, "train", "--out", tmp_path / "silent", *flags)
    ended = pools.hvd_lm(ranks, "train", "--out", tmp_path / "run", *flags, "--sample-every", "3", "--sample-prompt", "The value")
    rows = launcher.metrics(tmp_path / "run")
    assert launcher.losses(tmp_path / "run") == launcher.losses(tmp_path / "silent")
    assert [row["step"] for row in rows if "sample" in row] == [3, 6]
    for step in (3, 6):
        checkpoint = tmp_path / "run" / checkpoints.FOLDER / f"step-{step:08d}"
        drawn = hvd_lm.SamplingConfig(seed=step)
        written = hvd_lm.generate(checkpoint, "The value", length=40, sampling=drawn, framework=framework)  # type: ignore[arg-type]
        expected = "The value" + "".join(written)
        assert rows[step - 1]["sample"] == expected
        assert ended.output.count(f"step {step} writes: {expected}") == 1


@pytest.mark.parametrize("split", ["vocabulary", "layers"])
def test_a_model_that_no_rank_has_writes_nothing(split: str) -> None:
    with pytest.raises(ConfigError, match=f"without --split {split}"):
        hvd_lm.RunConfig(sample_every=5, topology=hvd_lm.TopologyConfig(model_parallel=2, split=split))  # type: ignore[arg-type]
