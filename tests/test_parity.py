"""The same seed gives the same loss curve in PyTorch and in TensorFlow: the reference recipe on real text, for up to 100 steps."""

from __future__ import annotations

from pathlib import Path

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(len(INSTALLED) < 2, reason="parity needs both frameworks")]

RECIPE = [
    "--vocabulary-size",
    "1000",
    "--hidden-size",
    "96",
    "--sequence-length",
    "16",
    "--batch-size",
    "4",
    "--backward-passes-per-step",
    "10",
    "--learning-rate",
    "0.002",
]
NOISE = [
    "--activation-penalty", "2", "--temporal-penalty", "1",
    "--dropout", "0.2", "--locked-dropout", "--input-dropout", "0.3", "--embedding-dropout", "0.1", "--weight-dropout", "0.3",
]  # fmt: skip


@pytest.mark.parametrize(
    ("ranks", "steps", "flags"),
    [
        pytest.param(1, 100, ["--embedding-size", "48"], id="alone"),
        pytest.param(1, 40, ["--embedding-size", "96", "--tie-embedding"], id="tied"),
        pytest.param(1, 100, ["--embedding-size", "48", "--dropout", "0.3"], id="dropout"),
        pytest.param(2, 40, ["--embedding-size", "48"], id="two-ranks"),
        pytest.param(1, 40, ["--embedding-size", "48", *NOISE], id="noisy"),
        pytest.param(1, 40, ["--embedding-size", "48", "--cell", "mlstm", "--dropout", "0.2"], id="mlstm"),
        pytest.param(1, 100, ["--embedding-size", "48", "--cell", "mlstm", "--weight-normalization"], id="normalized"),
        pytest.param(1, 40, ["--embedding-size", "48", "--projection-size", "32", "--dropout", "0.2"], id="projected"),
        pytest.param(1, 40, ["--embedding-size", "48", "--hidden-size", "96", "64"], id="tapered"),
    ],
)
def test_losses_agree_at_each_step(ranks: int, steps: int, flags: list[str], tmp_path: Path) -> None:
    curves = {}
    for framework in INSTALLED:
        out = tmp_path / framework
        pools.hvd_lm(
            ranks,
            "train",
            "--framework",
            framework,
            "--out",
            out,
            *RECIPE,
            *flags,
            "--steps",
            str(steps),
            "--validation-every",
            str(steps // 2),
        )
        curves[framework] = launcher.metrics(out)
    first, second = curves.values()
    assert len(first) == steps
    assert first[-1]["loss"] < first[0]["loss"] - 1.0, "the model learns"
    np.testing.assert_allclose([row["loss"] for row in second], [row["loss"] for row in first], rtol=1e-4)
    validations = [[row["validation_loss"] for row in curve if "validation_loss" in row] for curve in (first, second)]
    assert len(validations[0]) == 2
    np.testing.assert_allclose(validations[1], validations[0], rtol=1e-4)
