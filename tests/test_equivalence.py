"""The gradient is the mean over the window, however the window is split: over ranks, or over micro-batches."""

from __future__ import annotations

from pathlib import Path

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED

from hvd_lm.config import Cell

pytestmark = pytest.mark.ranks

# 6 micro-batches of 16 tokens in each of 8 streams, 4 to a window: every second window is a short one of 2.
TEXT_TOKENS = 8 * 6 * 16
STEPS = 20


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real words, cut so that epochs end with a short window and a ragged micro-batch."""
    from hvd_lm.data.corpus import embedded_corpus

    words = embedded_corpus().split()[: TEXT_TOKENS - 30]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(words[i : i + 25]) for i in range(0, len(words), 25)) + "\n")
    return path


@pytest.mark.parametrize(("framework", "cell"), [*((name, "lstm") for name in INSTALLED), (INSTALLED[0], "mlstm")])
def test_ranks_times_batch_is_what_counts(framework: str, cell: Cell, text: Path, tmp_path: Path) -> None:
    """By the command line: (R=1, B=8), (R=2, B=4), (R=4, B=2) at the same N."""
    rows = {}
    for ranks in (1, 2, 4):
        out = tmp_path / f"ranks-{ranks}"
        pools.hvd_lm(
            ranks, "train", "--framework", framework, "--data", text, "--out", out, "--steps", str(STEPS),
            "--vocabulary-size", "200", "--embedding-size", "24", "--hidden-size", "32", "--sequence-length", "16",
            "--validation-share", "0", "--backward-passes-per-step", "4", "--batch-size", str(8 // ranks),
            "--clip", "0.2", "--learning-rate", "0.02", "--cell", cell,
        )  # fmt: skip
        rows[ranks] = launcher.metrics(out)
    alone = rows[1]
    assert len(alone) == STEPS
    tokens = np.diff([0, *(row["tokens"] for row in alone)])
    assert tokens[1] < tokens[0] / 1.9, "the second window of an epoch is short"
    assert tokens[0] == 8 * 4 * 16
    assert any(row["gradient_norm"] > 0.2 for row in alone), "clipping took place"
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.1
    for ranks in (2, 4):
        assert [row["tokens"] for row in rows[ranks]] == [row["tokens"] for row in alone]
        np.testing.assert_allclose([row["loss"] for row in rows[ranks]], [row["loss"] for row in alone], rtol=1e-5)


def test_ranks_times_micro_batches_is_what_counts(framework: str) -> None:
    """By the adapters' interface, given the same tokens: (N=8, R=1), (N=4, R=2), (N=2, R=4)."""
    results = {}
    for ranks in (1, 2, 4):
        of_ranks = pools.body("same_tokens", ranks, framework)
        assert all(result == of_ranks[0] for result in of_ranks), "all ranks see the same figures"
        results[ranks] = np.array(of_ranks[0])
    losses, norms = results[1].T
    assert len(losses) == 20
    assert (norms > 0.1).any(), "clipping took place"
    assert losses[-1] < losses[0] - 0.1
    for ranks in (2, 4):
        np.testing.assert_allclose(results[ranks][:, 0], losses, rtol=1e-5)
        np.testing.assert_allclose(results[ranks][:, 1], norms, rtol=1e-4)


def test_ranks_share_a_target_batch(text: Path, tmp_path: Path) -> None:
    """N follows the ranks, the run says what it misses, and its settings tell N."""
    for ranks, passes in ((1, 4), (2, 2)):
        ended = pools.hvd_lm(
            ranks, "train", "--framework", INSTALLED[0], "--data", text, "--out", tmp_path / str(ranks), "--steps", "3",
            "--vocabulary-size", "200", "--embedding-size", "24", "--hidden-size", "32", "--sequence-length", "16",
            "--validation-share", "0", "--batch-size", "4", "--target-batch", "250",
        )  # fmt: skip
        assert "tokens per rank, 256 of all where --target-batch asks for 250; " in ended.output
        assert [row["tokens"] for row in launcher.metrics(tmp_path / str(ranks))] == [256, 512, 768]
        assert f"backward_passes_per_step: {passes}\n" in (tmp_path / str(ranks) / "config.yaml").read_text()
