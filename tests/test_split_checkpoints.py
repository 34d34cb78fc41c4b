"""Checkpoints of runs whose ranks divide the model: the same canonical file, whoever wrote it and whoever reads it."""

from __future__ import annotations

import json
from pathlib import Path

import launcher
import numpy as np
import pools
import pytest
from conftest import INSTALLED
from safetensors.numpy import load_file, save_file

from hvd_lm import checkpoint as checkpoints
from hvd_lm.checkpoint import tensors
from hvd_lm.checkpoint.format import MOMENTS, WEIGHTS, Checkpoint
from hvd_lm.errors import CheckpointError

GRIDS = [
    ("torch", {"data_parallel": 2, "model_parallel": 2}),
    ("torch", {"model_parallel": 2, "split": "layers"}),
    ("tensorflow", {"data_parallel": 2}),
    ("tensorflow", {"model_parallel": 2, "split": "layers"}),
    ("torch", {"data_parallel": 2, "split": "optimizer"}),
    ("tensorflow", {"model_parallel": 2}),
    ("torch", {}),
]


def train(ranks: int, framework: str, out: Path, steps: int, *flags: str) -> list[dict[str, float]]:
    batch = () if "--batch-size" in flags else ("--batch-size", str(4 // ranks))
    pools.hvd_lm(
        ranks, "train", "--framework", framework, "--out", out, *launcher.TINY, "--hidden-size", "16",
        "--steps", str(steps), "--learning-rate", "0.02", "--deterministic", *batch, *flags,
    )  # fmt: skip
    return launcher.metrics(out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(1, "torch", out, 6)
    return out


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    """Bit for bit."""
    assert found.optimizer_state.applied_steps == expected.optimizer_state.applied_steps
    for arrays, of_expected in (
        (found.weights, expected.weights),
        (found.optimizer_state.moments, expected.optimizer_state.moments),
    ):
        assert arrays.keys() == of_expected.keys()
        for name, array in of_expected.items():
            assert array.tobytes() == arrays[name].tobytes(), name


@pytest.mark.ranks
def test_a_checkpoint_goes_from_grid_to_grid(trained: Path, tmp_path: Path) -> None:
    source = trained
    for index, (framework, topology) in enumerate(GRIDS):
        target = tmp_path / str(index)
        ranks = topology.get("data_parallel", 1) * topology.get("model_parallel", 1)
        assert pools.body("round_trip", ranks, framework, json.dumps(topology), source, target) == [6] * ranks
        assert_same(checkpoints.load(target), checkpoints.load(trained))
        source = target


@pytest.mark.ranks
# The other pairs: test_resume.py.
@pytest.mark.parametrize(("framework", "kind"), zip(INSTALLED, ("vocabulary", "layers"), strict=False))
def test_a_split_run_goes_on_bit_for_bit(framework: str, kind: str, tmp_path: Path) -> None:
    split = ("--model-parallel", "2", "--split", kind, "--dropout", "0.2")
    whole = train(2, framework, tmp_path / "whole", 6, *split)
    train(2, framework, tmp_path / "parts", 3, *split)
    resumed = train(2, framework, tmp_path / "parts", 6, *split, "--resume", "auto")
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    assert_same(checkpoints.load(tmp_path / "parts"), checkpoints.load(tmp_path / "whole"))
    assert resumed[-1]["validation_loss"] == whole[-1]["validation_loss"]


@pytest.mark.ranks
def test_a_pipeline_trains_and_validates_as_one_process(framework: str, trained: Path, tmp_path: Path) -> None:
    """Its ranks read one text: as many sequences as one process."""
    alone = launcher.metrics(trained)
    split = train(2, framework, tmp_path, 6, "--model-parallel", "2", "--split", "layers", "--batch-size", "4")
    np.testing.assert_allclose([row["loss"] for row in split], [row["loss"] for row in alone], rtol=1e-5)
    np.testing.assert_allclose(split[-1]["validation_loss"], alone[-1]["validation_loss"], rtol=1e-5)
    assert all(0 < row["pipeline_seconds"] < row["seconds"] for row in split)


@pytest.mark.ranks
def test_a_split_run_validates_and_evaluates_as_one_process(framework: str, trained: Path, tmp_path: Path) -> None:
    alone = launcher.metrics(trained)
    split = train(2, framework, tmp_path / "split", 6, "--model-parallel", "2")
    np.testing.assert_allclose([row["loss"] for row in split], [row["loss"] for row in alone], rtol=1e-5)
    np.testing.assert_allclose(split[-1]["validation_loss"], alone[-1]["validation_loss"], rtol=1e-5)
    text = tmp_path / "text.txt"
    text.write_text("the value of a name is what the statement says\nif it is not a name it is an expression\n" * 20)
    losses = []
    for ranks in (1, 2, 3):
        printed = pools.hvd_lm(
            ranks, "evaluate", "--checkpoint", trained, "--data", text, "--framework", framework, "--batch-size", "3",
            "--sequence-length", "8", "--model-parallel", str(ranks),
        ).output  # fmt: skip
        losses += [json.loads(line)["loss"] for line in printed.splitlines() if line.startswith("{")]
    np.testing.assert_allclose(losses, losses[:1] * 3, rtol=1e-6)


# --- files -----------------------------------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    return {name: generator.random(shape, np.float32) for name, shape in {"b": (7, 3), "a": (5,), "c/d": (2, 1)}.items()}


def test_a_file_is_what_the_library_writes(tmp_path: Path) -> None:
    save_file(arrays(), tmp_path / "theirs")
    tensors.write(tensors.of_arrays(arrays()), tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_pieces_in_any_order_make_the_file(tmp_path: Path) -> None:
    whole = arrays()
    pieces = [("b", 4, whole["b"][4:]), ("a", 0, whole["a"]), ("b", 0, whole["b"][:4]), ("c/d", 0, whole["c/d"])]
    tensors.write(tensors.Tensors({name: array.shape for name, array in whole.items()}, pieces), tmp_path / "file")
    for name, array in load_file(tmp_path / "file").items():
        np.testing.assert_array_equal(array, whole[name])


def test_a_mapped_file_reads_as_it_was_written(tmp_path: Path) -> None:
    whole = arrays()
    tensors.write(tensors.of_arrays(whole), tmp_path / "file")
    found = tensors.mapped(tmp_path / "file")
    assert found.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)
    found["a"][0] = 9
    assert load_file(tmp_path / "file")["a"][0] == whole["a"][0], "what is changed in memory stays there"


def test_other_number_formats_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.float64)}, tmp_path / "file")
    with pytest.raises(CheckpointError, match="a is F64"):
        tensors.mapped(tmp_path / "file")


def test_a_mapped_checkpoint_is_the_loaded_one(trained: Path) -> None:
    assert_same(checkpoints.mapped(trained), checkpoints.load(trained))
    newest = trained / "checkpoints" / "step-00000006"
    for name in (WEIGHTS, MOMENTS):
        assert load_file(newest / name).keys() == tensors.mapped(newest / name).keys()
