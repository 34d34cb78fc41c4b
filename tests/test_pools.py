"""Started ranks: what goes wrong in one of them fails its test with what the ranks said, and the next order finds new ranks."""

from __future__ import annotations

from pathlib import Path

import launcher
import psutil
import pytest
from conftest import INSTALLED
from pools import PoolError, body, hvd_lm

FLAGS = [
    *launcher.SMALL,
    "--steps",
    "4",
    "--backward-passes-per-step",
    "2",
    "--dropout",
    "0.2",
    "--threads",
    "1",
    "--deterministic",
]

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", ["rank 1 failed", 'raise ValueError("nothing works here")', "rank 0 begins"]),
        ("ends", ["rank 1 died", "rank 1 begins"]),
        ("hangs", ["after 3 seconds rank(s) [1] had not come to an end", "misbehaving.py", "in main"]),
    ],
)
def test_what_goes_wrong_is_told_and_ends_the_ranks(how: str, words: list[str]) -> None:
    before = body("misbehaving", 2, "torch", "does nothing")
    assert body("misbehaving", 2, "torch", "does nothing") == before, "started once"
    with pytest.raises(PoolError) as caught:
        body("misbehaving", 2, "torch", how, timeout=3)
    for word in words:
        assert word in str(caught.value)
    assert not any(map(psutil.pid_exists, before))
    assert set(body("misbehaving", 2, "torch", "does nothing")).isdisjoint(before)


@pytest.mark.parametrize(("framework", "ranks"), [(INSTALLED[0], 1), (INSTALLED[-1], 2)])
def test_a_started_rank_trains_like_a_fresh_one(framework: str, ranks: int, tmp_path: Path) -> None:
    """Bit for bit, whatever it did before."""
    flags = ["train", "--framework", framework, *FLAGS, "--batch-size", "4"]
    launcher.hvd_lm(ranks, *flags, "--out", tmp_path / "fresh").expect_success()
    for earlier in (["--compression", "fp16"], ["--hidden-size", "48", "--layers", "1"], []):
        ended = hvd_lm(ranks, *flags, *earlier, "--out", tmp_path / "started")
    assert "over Gloo" in ended.output
    for name in ("loss", "gradient_norm", "validation_loss"):
        fresh, started = ([row[name] for row in launcher.metrics(tmp_path / out) if name in row] for out in ("fresh", "started"))
        assert started == fresh
