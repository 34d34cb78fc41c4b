"""Training gives the losses that it gave before: those of assets/golden.json, made by `python tests/golden.py --out`."""

from __future__ import annotations

import json
from pathlib import Path

import golden
import numpy as np
import pytest

pytestmark = pytest.mark.ranks

CURVES: golden.Curves = json.loads(golden.ASSET.read_text(encoding="utf-8"))
KEPT = [run for run in golden.GOLDEN if run.key("torch") in CURVES]
TOLERANCES = {"loss": 1e-5, "validation_loss": 1e-5, "gradient_norm": 1e-4, "tokens": 0}
"""Relative: the two frameworks, which sum in different orders, agree within 1e-6 in these losses, and 2e-5 in the norms."""


@pytest.mark.parametrize("run", KEPT, ids=lambda run: f"{run.name}-{run.ranks}")
def test_losses_are_those_of_before(framework: str, run: golden.Golden, tmp_path: Path) -> None:
    curves, expected = golden.run(run, framework, tmp_path), CURVES[run.key(framework)]
    assert set(curves) == set(TOLERANCES)
    for column, values in curves.items():
        np.testing.assert_allclose(values, expected[column], rtol=TOLERANCES[column], err_msg=column)


def test_the_kept_runs_go_every_way() -> None:
    names = {"plain", "dropout", "tied", "short-window", "resumed"}
    assert {(run.name, run.ranks) for run in KEPT} == {("fp16", 2), *((name, ranks) for name in names for ranks in (1, 2))}
