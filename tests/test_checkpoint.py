"""Checkpoints: what goes in comes out bit for bit, the newest is taken, damage is one line that names the folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hvd_lm import checkpoint as checkpoints
from hvd_lm.adapters.base import OptimizerState
from hvd_lm.checkpoint import Checkpoint
from hvd_lm.config import ModelConfig, OptimizerConfig
from hvd_lm.data.tokenizer import train_word_level
from hvd_lm.errors import CheckpointError
from hvd_lm.weights import initial_weights

TEXT = "the cat sat\non the mat\n"


def example(step: int = 20, **counters: Any) -> Checkpoint:
    """A small checkpoint with every kind of content; the moments are random, with values that rounding would change."""
    tokenizer = train_word_level(TEXT, None)
    model = ModelConfig(tokenizer.vocabulary_size, embedding_size=3, hidden_size=4, layers=2, dropout=0.1)
    weights = initial_weights(model, seed=step)
    generator = np.random.default_rng(step)
    moments = {
        f"{moment}/{name}": generator.standard_normal(array.shape).astype(np.float32) * np.float32(1e-30)
        for moment in ("first", "second")
        for name, array in weights.items()
    }
    optimizer = OptimizerConfig(learning_rate=3e-4, clip=None, beta1=0.85, epsilon=1e-7)
    state = OptimizerState(applied_steps=step - 1, moments=moments)
    return Checkpoint(step, model, optimizer, weights, state, tokenizer, {"tokens": 2**40, "seconds": 0.1, **counters})


def refusal(path: Path) -> str:
    """The message of the CheckpointError that loading `path` gives: one line."""
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# --- there and back --------------------------------------------------------------------------------------


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = example(loss_scale=8192.0, skipped_steps=1)
    folder = checkpoints.save(saved, tmp_path, keep=2)
    loaded = checkpoints.load(folder)
    assert (loaded.step, loaded.model, loaded.optimizer) == (saved.step, saved.model, saved.optimizer)
    assert loaded.counters == saved.counters
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
    saved = Checkpoint(1, model, OptimizerConfig(optimizer="sgd"), initial_weights(model, 1), OptimizerState(1, {}), tokenizer, {})
    loaded = checkpoints.load(checkpoints.save(saved, tmp_path, keep=1))
    assert loaded.model == model
    assert loaded.optimizer_state.moments == {}
    assert "output_kernel" not in loaded.weights


def test_files_are_safetensors_and_json(tmp_path: Path) -> None:
    folder = checkpoints.save(example(), tmp_path, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.json",
        "optimizer.safetensors",
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
    checkpoints.save(example(7, tries=2), tmp_path, keep=2)
    assert folders(tmp_path) == ["step-00000007"]
    assert checkpoints.load(tmp_path).counters["tries"] == 2


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

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(example(9), tmp_path, keep=1)
    assert checkpoints.load(tmp_path).step == 5


# --- damage ----------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a checkpoint."""
    return checkpoints.save(example(), tmp_path, keep=1)


def test_missing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        message = refusal(path)
        assert str(path) in message
        assert "no checkpoint" in message


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_arrays(saved: Path, name: str, share: float) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(share * len(content))])
    assert str(saved) in refusal(saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "checkpoint.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff\xfe garbage", b"[1, 2]", b"{}", b"null", b'"text"'])
def test_garbage(saved: Path, name: str, content: bytes) -> None:
    (saved / name).write_bytes(content)
    assert str(saved) in refusal(saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "checkpoint.json", "tokenizer.json"])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    # Asked for by the run, as a user does: without checkpoint.json the folder itself is no checkpoint.
    message = refusal(saved.parent.parent)
    assert saved.name in message


def change_arrays(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)


def transpose(arrays: dict[str, np.ndarray]) -> None:
    arrays["embedding"] = np.ascontiguousarray(arrays["embedding"].T)


def drop(arrays: dict[str, np.ndarray]) -> None:
    del arrays["embedding"]


def add(arrays: dict[str, np.ndarray]) -> None:
    arrays["embedding_2"] = arrays["embedding"]


@pytest.mark.parametrize("change", [transpose, drop, add])
def test_weights_that_do_not_fit_the_model(saved: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    change_arrays(saved / "weights.safetensors", change)
    message = refusal(saved)
    assert "embedding" in message
    assert str(saved) in message


def halve(arrays: dict[str, np.ndarray]) -> None:
    arrays["embedding"] = arrays["embedding"].astype(np.float16)


def test_weights_of_another_number_format(saved: Path) -> None:
    """The canonical weights are float32: halves would silently lose what training gained."""
    change_arrays(saved / "weights.safetensors", halve)
    assert "embedding" in refusal(saved)


def change_description(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "checkpoint.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(description | change), encoding="utf-8")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_format(saved: Path, version: object) -> None:
    change_description(saved, {"format_version": version})
    message = refusal(saved)
    assert str(saved) in message
    assert f"format {version}" in message


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"layers": 0}},
        {"model": {"layers": "two"}},
        {"model": {"depth": 2}},
        {"model": {}},
        {"model": None},
        {"model": "lstm"},
        {"optimizer": {"learning_rate": -1}},
        {"optimizer": [1]},
        {"model": {"vocabulary_size": None}},
    ],
    ids=str,
)
def test_description_that_makes_no_sense(saved: Path, change: dict[str, Any]) -> None:
    change_description(saved, change)
    assert str(saved) in refusal(saved)


@pytest.mark.parametrize("name", ["step", "applied_steps", "model", "optimizer", "counters", "format_version"])
def test_description_that_lacks_an_entry(saved: Path, name: str) -> None:
    path = saved / "checkpoint.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    del description[name]
    path.write_text(json.dumps(description), encoding="utf-8")
    message = refusal(saved)
    assert str(saved) in message
    assert name in message


def test_tokenizer_of_another_size_does_not_fit_the_model(tmp_path: Path) -> None:
    """Its ids would lie beyond the embedding."""
    good = example()
    folder = checkpoints.save(replace(good, tokenizer=train_word_level(TEXT + "many more words\n", None)), tmp_path, keep=1)
    assert str(folder) in refusal(folder)
