"""Checkpoints: what goes in comes out bit for bit, the newest is taken, the best is kept."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from saved import TEXT, example, folders, progress, refusal

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import OptimizerState
from hvd_lm.checkpoint import Checkpoint, CheckpointWriter, tensors
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.data.tokenizer import train_word_level
from hvd_lm.errors import CheckpointError
from hvd_lm.model.weights import initial_weights
from hvd_lm.training.loss_scale import LossScale

# --- there and back --------------------------------------------------------------------------------------


def test_who_only_reads_the_model_takes_no_moments(tmp_path: Path) -> None:
    saved = example()
    checkpoints.save(saved, tmp_path, keep=2)
    model = checkpoints.load_model(tmp_path)
    assert model.optimizer_state == OptimizerState(saved.optimizer_state.applied_steps, {})
    np.testing.assert_array_equal(model.weights["embedding"], saved.weights["embedding"])
    (tmp_path / "checkpoints" / "step-00000020" / "optimizer.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors was altered"):
        checkpoints.load_model(tmp_path)


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = example(loss_scale=LossScale(8192.0, 100, good_steps=7, skipped_steps=1), settings={"seed": 3, "out": "x"})
    folder = checkpoints.save(saved, tmp_path, keep=2)
    loaded = checkpoints.load(folder)
    assert (loaded.step, loaded.model, loaded.optimizer) == (saved.step, saved.model, saved.optimizer)
    np.testing.assert_array_equal(loaded.progress.lstm_state_2SU, saved.progress.lstm_state_2SU)
    assert replace(loaded.progress, lstm_state_2SU=None) == replace(saved.progress, lstm_state_2SU=None)
    assert loaded.optimizer_state.applied_steps == saved.optimizer_state.applied_steps
    assert loaded.tokenizer.to_json() == saved.tokenizer.to_json()
    np.testing.assert_array_equal(loaded.tokenizer.encode(TEXT), saved.tokenizer.encode(TEXT))
    for now, then in ((loaded.weights, saved.weights), (loaded.optimizer_state.moments, saved.optimizer_state.moments)):
        assert now.keys() == then.keys()
        for name, array in then.items():
            assert now[name].dtype == array.dtype == np.float32
            assert now[name].shape == array.shape
            assert now[name].tobytes() == array.tobytes()


def test_special_floats_come_back(tmp_path: Path) -> None:
    saved = example()
    odd = np.array([0.0, -0.0, 1e-45, 3.4e38, -1e-38, np.pi], np.float32)
    saved.weights["output_bias"][: len(odd)] = odd
    loaded = checkpoints.load(checkpoints.save(saved, tmp_path, keep=1))
    assert loaded.weights["output_bias"].tobytes() == saved.weights["output_bias"].tobytes()


def test_arrays_that_are_not_contiguous_come_back(tmp_path: Path) -> None:
    """An adapter may hand out transposed views."""
    saved = example()
    saved.weights["embedding"] = np.asfortranarray(saved.weights["embedding"])
    saved.weights["output_bias"] = np.repeat(saved.weights["output_bias"], 2)[::2]
    loaded = checkpoints.load(checkpoints.save(saved, tmp_path, keep=1))
    for name, array in saved.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], array)


def test_tied_model_without_moments_comes_back(tmp_path: Path) -> None:
    tokenizer = train_word_level(TEXT, None)
    model = ModelConfig(tokenizer.vocabulary_size, embedding_size=4, hidden_size=4, layers=1, tie_embedding=True)
    sgd = OptimizerConfig(optimizer="sgd")
    saved = Checkpoint(1, model, sgd, initial_weights(model, 1), OptimizerState(1, {}), tokenizer, progress(model))
    loaded = checkpoints.load(checkpoints.save(saved, tmp_path, keep=1))
    assert loaded.model == model
    assert loaded.optimizer_state.moments == {}
    assert "output_kernel" not in loaded.weights


def test_files_are_safetensors_and_json(tmp_path: Path) -> None:
    folder = checkpoints.save(example(), tmp_path, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.json",
        "optimizer.safetensors",
        "state.safetensors",
        "tokenizer.json",
        "weights.safetensors",
    ]
    for path in folder.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in folder.glob("*.safetensors"):
        assert load_file(path)
    for path in folder.iterdir():
        assert not path.read_bytes().startswith(b"\x80"), "pickle protocol 2 and above begin so"


# --- which one -------------------------------------------------------------------------------------------


def test_newest_is_taken(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        checkpoints.save(example(step), tmp_path, keep=10)
    assert checkpoints.load(tmp_path).step == 100
    assert checkpoints.load(tmp_path / "checkpoints" / "step-00000005").step == 5


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in range(1, 6):
        checkpoints.save(example(step), tmp_path, keep=keep)
    assert folders(tmp_path) == [f"step-{step:08d}" for step in range(6 - keep, 6)]


def test_same_step_is_replaced(tmp_path: Path) -> None:
    checkpoints.save(example(7), tmp_path, keep=2)
    checkpoints.save(example(7, tokens=5), tmp_path, keep=2)
    assert folders(tmp_path) == ["step-00000007"]
    assert checkpoints.load(tmp_path).progress.tokens == 5


def test_partial_folder_is_ignored(tmp_path: Path) -> None:
    """What a run leaves that was killed while it wrote."""
    checkpoints.save(example(5), tmp_path, keep=2)
    partial = tmp_path / "checkpoints" / ".step-00000009.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    assert checkpoints.load(tmp_path).step == 5
    checkpoints.save(example(9), tmp_path, keep=2)
    assert checkpoints.load(tmp_path).step == 9
    assert folders(tmp_path) == ["step-00000005", "step-00000009"]


def test_partial_folder_alone_is_no_checkpoint(tmp_path: Path) -> None:
    partial = tmp_path / "checkpoints" / ".step-00000009.partial"
    partial.mkdir(parents=True)
    assert str(tmp_path) in refusal(tmp_path)


def test_failed_save_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(example(5), tmp_path, keep=1)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(example(9), tmp_path, keep=1)
    assert checkpoints.load(tmp_path).step == 5


# --- the best one ----------------------------------------------------------------------------------------


def test_the_best_is_kept_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file: some file systems have no links."""

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", no_links)
    losses = {1: 5.0, 2: 4.0, 3: 4.5, 4: None, 5: 6.0}
    best = None
    for step, loss in losses.items():
        best = loss if best is None or (loss is not None and loss < best) else best
        checkpoints.save(example(step, validation_loss=loss, best_validation_loss=best), tmp_path, keep=1)
    assert folders(tmp_path) == ["best", "step-00000002", "step-00000005"]
    best_file = tmp_path / "checkpoints" / "best"
    assert best_file.read_text() == "step-00000002\n"
    assert checkpoints.load(best_file).step == 2
    assert checkpoints.load(tmp_path).step == 5


def test_a_file_system_that_cannot_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.save(example(5), tmp_path, keep=1)
    assert checkpoints.load(tmp_path).step == 5


def test_the_link_of_an_earlier_version_is_read_kept_and_replaced(tmp_path: Path) -> None:
    checkpoints.save(example(2, validation_loss=4.0, best_validation_loss=4.0), tmp_path, keep=1)
    best = tmp_path / "checkpoints" / "best"
    best.unlink()
    best.symlink_to("step-00000002")
    checkpoints.save(example(3, validation_loss=5.0, best_validation_loss=4.0), tmp_path, keep=1)
    assert folders(tmp_path) == ["best", "step-00000002", "step-00000003"]
    assert checkpoints.load(best).step == 2
    checkpoints.save(example(4, validation_loss=3.0, best_validation_loss=3.0), tmp_path, keep=1)
    assert folders(tmp_path) == ["best", "step-00000004"]
    assert not best.is_symlink()
    assert checkpoints.load(best).step == 4


@pytest.mark.parametrize("content", [b"", b"../../elsewhere", b"/etc", b"step-00000009", b"\xff" * 300])
def test_a_best_that_names_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    checkpoints.save(example(5), tmp_path, keep=1)
    best = tmp_path / "checkpoints" / "best"
    best.write_bytes(content)
    assert "no checkpoint in" in refusal(best)
    checkpoints.save(example(6), tmp_path, keep=1)
    assert folders(tmp_path) == ["best", "step-00000006"]


def test_a_best_that_was_discarded_is_forgotten(tmp_path: Path) -> None:
    for step, loss in ((2, 5.0), (4, 4.0)):
        checkpoints.save(example(step, validation_loss=loss, best_validation_loss=loss), tmp_path, keep=2)
    checkpoints.discard_after(2, tmp_path, tmp_path / "aside")
    assert folders(tmp_path) == ["step-00000002"]
    assert folders(tmp_path / "aside") == ["step-00000004"]


# --- names -----------------------------------------------------------------------------------------------


def test_a_run_may_have_a_name_that_begins_as_a_checkpoint(tmp_path: Path) -> None:
    for name in ("step-decay", "step-00000020"):
        checkpoints.save(example(7), tmp_path / name, keep=1)
        assert checkpoints.load(tmp_path / name).step == 7


def test_only_what_was_written_here_is_removed(tmp_path: Path) -> None:
    mine = ["step-notes", "step-1", "step-00000001.bak", "step-0000000\N{FULLWIDTH DIGIT ONE}", ".step-mine.partial"]
    for name in mine:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001").write_text("a file")
    for step in (5, 6):
        checkpoints.save(example(step), tmp_path, keep=1)
    assert folders(tmp_path) == sorted([*mine, "step-00000001", "step-00000006"])
    assert checkpoints.load(tmp_path).step == 6


def test_steps_count_on_beyond_eight_digits(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        checkpoints.save(example(step), tmp_path, keep=2)
    assert checkpoints.load(tmp_path).step == 100_000_000
    checkpoints.discard_after(99_999_999, tmp_path, tmp_path / "aside")
    assert checkpoints.load(tmp_path).step == 99_999_999


# --- writing beside training -----------------------------------------------------------------------------


def test_writer_has_all_on_the_disk_when_it_ends(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in (1, 2, 3):
            writer.write(example(step))
    assert folders(tmp_path) == ["step-00000002", "step-00000003"]
    assert checkpoints.load(tmp_path).step == 3


def test_arrays_may_change_once_the_writer_has_released_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the first file is begun, and before any is: the checkpoint is that of the moment when it was given."""
    began, go_on = threading.Event(), threading.Event()

    write = tensors.write

    def slow(of_file: tensors.Tensors, path: Path) -> None:
        began.set()
        go_on.wait(10)
        write(of_file, path)

    monkeypatch.setattr(tensors, "write", slow)
    expected = example(1)
    with CheckpointWriter(tmp_path, keep=2) as writer:
        mine = example(1)
        writer.write(mine)
        assert began.wait(10)
        # The file that is being written is waited for, and it is not finished yet.
        releasing = threading.Thread(target=writer.release)
        releasing.start()
        releasing.join(0.2)
        assert releasing.is_alive()
        go_on.set()
        releasing.join(10)
        for array in (*mine.weights.values(), *mine.optimizer_state.moments.values()):
            array.fill(7.0)
        writer.release()
    loaded = checkpoints.load(tmp_path)
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], array)
    for name, array in expected.optimizer_state.moments.items():
        np.testing.assert_array_equal(loaded.optimizer_state.moments[name], array)


def test_writer_tells_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "write", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"), CheckpointWriter(tmp_path, keep=2) as writer:
        writer.write(example(1))
