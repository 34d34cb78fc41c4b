"""Checkpoints of format 1 stay loadable: tests/assets/format1 was written by the last version that wrote them.

text.txt is what it was trained on; losses.json what that version went on with, in PyTorch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import hvd_lm
from hvd_lm import checkpoint as checkpoints

ASSETS = Path(__file__).parent / "assets" / "format1"
FOLDER = ASSETS / "step-00000004"


def test_what_it_holds_is_read() -> None:
    loaded = checkpoints.load(FOLDER)
    assert (loaded.step, loaded.optimizer_state.applied_steps) == (4, 4)
    assert (loaded.model.units, loaded.model.cell, loaded.model.dropout) == ((8, 8), "lstm", 0.2)
    stored_L2SH = load_file(FOLDER / "state.safetensors")["lstm"]
    assert stored_L2SH.shape == (2, 2, 2, 8)
    state_2SU = loaded.progress.lstm_state_2SU
    assert state_2SU.shape == (2, 2, 16)
    for layer in range(2):
        np.testing.assert_array_equal(state_2SU[:, :, 8 * layer : 8 * (layer + 1)], stored_L2SH[layer])


def test_what_is_written_of_it_is_format_2(tmp_path: Path) -> None:
    folder = checkpoints.save(checkpoints.load(FOLDER), tmp_path, keep=1)
    assert json.loads((folder / "checkpoint.json").read_text())["format_version"] == 2
    again, before = checkpoints.load(folder), checkpoints.load(FOLDER)
    np.testing.assert_array_equal(again.progress.lstm_state_2SU, before.progress.lstm_state_2SU)
    for name, weight in before.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)


def test_a_run_goes_on_from_it(framework: str, tmp_path: Path) -> None:
    """With the losses that the old version went on with: dropout, moments, states and position are all there."""
    run = tmp_path / "run"
    shutil.copytree(FOLDER, run / "checkpoints" / FOLDER.name)
    expected = json.loads((ASSETS / "losses.json").read_text())
    config = hvd_lm.RunConfig(
        framework=framework,  # type: ignore[arg-type]
        out=run,
        steps=8,
        resume="auto",
        threads=1,
        model=hvd_lm.ModelConfig(vocabulary_size=40, embedding_size=6, hidden_size=8, dropout=0.2),
        data=hvd_lm.DataConfig(data=(ASSETS / "text.txt",), validation_cut="tokens", batch_size=2, sequence_length=8),
        communication=hvd_lm.CommunicationConfig(backward_passes_per_step=2),
    )
    hvd_lm.train(config)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == expected["steps"]
    assert [row["loss"] for row in rows] == pytest.approx(expected["loss"], rel=1e-6)
