"""The LSTM with a projection on several ranks, and what a run carries of it; gradients: test_adapters.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launcher
import numpy as np
import pools
import pytest
from grids import alone, assert_same_figures, on_grid

from hvd_lm import checkpoint as checkpoints
from hvd_lm.config import ModelConfig
from hvd_lm.errors import ConfigError
from hvd_lm.model.cost import vocabulary_split_bytes


@pytest.mark.ranks
@pytest.mark.parametrize("grid", [{"model_parallel": 2}, {"model_parallel": 2, "split": "layers"}])
def test_figures_are_those_of_one_process(framework: str, grid: dict[str, Any]) -> None:
    assert_same_figures(on_grid(framework, 2, "projected", steps=20, **grid), alone(framework, "projected")[:20])


@pytest.mark.ranks
def test_a_run_goes_on_bit_for_bit(framework: str, tmp_path: Path) -> None:
    """Under a layer split, whose states are on two ranks; and nearly so without."""

    def train(out: str, ranks: int, steps: int, *flags: str) -> list[float]:
        pools.hvd_lm(
            ranks, "train", "--framework", framework, "--out", tmp_path / out, *launcher.TINY, "--hidden-size", "16", "20",
            "--projection-size", "6", "--steps", str(steps), "--batch-size", "4", "--learning-rate", "0.02", "--deterministic",
            "--validation-share", "0", *flags,
        )  # fmt: skip
        return launcher.losses(tmp_path / out)

    split = ("--model-parallel", "2", "--split", "layers")
    whole = train("whole", 2, 6, *split)
    train("parts", 2, 3, *split)
    assert train("parts", 2, 6, *split, "--resume", "auto") == whole
    h, c = checkpoints.load(tmp_path / "parts").progress.lstm_state_2SU
    of_h, of_c = (np.split(kind, [16], axis=1) for kind in (h, c))
    assert all(kind[:, :6].all() and not kind[:, 6:].any() for kind in of_h), "6 columns of each layer, then zeros"
    assert all(kind.all() for kind in of_c)
    np.testing.assert_allclose(train("whole", 1, 8, "--resume", "auto")[:6], whole, rtol=0)
    np.testing.assert_allclose(train("alone", 1, 8), launcher.losses(tmp_path / "whole"), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"projection_size": 0}, "--projection-size must be at least 1, not 0"),
        ({"projection_size": 4, "cell": "mlstm"}, "--projection-size needs --cell lstm, not mlstm"),
        ({"projection_size": 9, "hidden_size": (9, 8)}, "--projection-size must be at most --hidden-size, not 9 for a layer of 8"),
        ({"projection_size": 4, "embedding_size": 8, "hidden_size": 8, "tie_embedding": True}, "equal to --projection-size"),
    ],
)
def test_what_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelConfig(**settings)


def test_projected_activations_travel() -> None:
    """Of a token 2 * 4 * P bytes to the other rank, beside the softmax."""
    sent = [
        vocabulary_split_bytes(ModelConfig(100, 8, 32, 1, projection_size=size), data_size=1, model_size=2, tokens=10, words=0)
        for size in (8, 16)
    ]
    lstm = 4 * (4 * 32 * 8 + 8 * 32)  # its recurrent kernel and its projection are smaller by so much
    assert sent[1] - sent[0] == 10 * 2 * 4 * 8 + lstm
