"""Damaged and made-up checkpoints: one line that names the folder, and the one before is taken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from saved import FILES, TEXT, example, refusal, reseal

from hvd_lm import checkpoint as checkpoints
from hvd_lm.data.tokenizer import train_word_level

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


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_arrays(saved: Path, name: str, share: float) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(share * len(content))])
    assert str(saved) in refusal(saved)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff\xfe garbage", b"[1, 2]", b"{}", b"null", b'"text"'])
def test_garbage(saved: Path, name: str, content: bytes) -> None:
    (saved / name).write_bytes(content)
    assert str(saved) in refusal(saved)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    # Asked for by the run, as a user does: without checkpoint.json the folder itself is no checkpoint.
    message = refusal(saved.parent.parent)
    assert saved.name in message


def change_arrays(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    reseal(path.parent)


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


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_other_format(saved: Path, version: object) -> None:
    reseal(saved, format_version=version)
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
        {"progress": {}},
        {"progress": None},
        {"files": {}},
        {"model": {"layers": 10**9}},
        {"step": -1},
        {"step": 2.5},
        {"step": True},
        {"applied_steps": "4"},
        {"format_version": True},
    ],
    ids=str,
)
def test_description_that_makes_no_sense(saved: Path, change: dict[str, Any]) -> None:
    reseal(saved, **change)
    assert str(saved) in refusal(saved)


@pytest.mark.parametrize("name", ["step", "applied_steps", "model", "optimizer", "progress", "files", "checksum", "format_version"])
def test_description_that_lacks_an_entry(saved: Path, name: str) -> None:
    path = saved / "checkpoint.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    del description[name]
    path.write_text(json.dumps(description), encoding="utf-8")
    if name != "checksum":
        reseal(saved)
    message = refusal(saved)
    assert str(saved) in message
    assert name in message


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": -1},
        {"tokens": 1.5},
        {"epoch": "one"},
        {"seconds": None},
        {"text": 3},
        {"settings": 3},
        {"loss_scale": {"scale": 0.0, "growth_steps": 1, "good_steps": 0, "skipped_steps": 0}},
        {"position": {"segments": [[4, 3]], "streams": 3, "sequence_length": 4, "micro_batches": 2}},
        {"position": {"segments": [[-1, 3]], "streams": 3, "sequence_length": 4, "micro_batches": 2}},
        {"position": {"segments": [[1, 2, 3]], "streams": 3, "sequence_length": 4, "micro_batches": 2}},
        {"position": {"segments": [], "streams": 10**12, "sequence_length": 4, "micro_batches": 2}},
        {"position": {"segments": [], "streams": 3, "sequence_length": 0, "micro_batches": 2}},
    ],
    ids=str,
)
def test_progress_that_makes_no_sense(saved: Path, change: dict[str, Any]) -> None:
    progress = json.loads((saved / "checkpoint.json").read_text(encoding="utf-8"))["progress"]
    reseal(saved, progress=progress | change)
    assert str(saved) in refusal(saved)


@pytest.mark.parametrize("without", FILES)
def test_a_description_that_leaves_a_file_out(saved: Path, without: str) -> None:
    """What it does not sum could be anything."""
    sums = {name: "" for name in FILES if name not in (without, "checkpoint.json")}
    reseal(saved, files=sums if without != "checkpoint.json" else sums | {"checkpoint.json": ""})
    assert "its files are not" in refusal(saved)


def test_moments_of_no_weight(saved: Path) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["first/embedding"] = arrays["first/embedding"][:1]

    change_arrays(saved / "optimizer.safetensors", change)
    assert "first/embedding is no moment of a weight" in refusal(saved)


def test_a_file_that_is_larger_than_its_model_is_not_read(saved: Path) -> None:
    """It has no bytes, but as many zeros as a disk has not."""
    with (saved / "weights.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    assert "weights.safetensors is larger than that of such a model" in refusal(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_not_waited_for(saved: Path, name: str) -> None:
    (saved / name).unlink()
    os.mkfifo(saved / name)
    assert "is no file" in refusal(saved.parent.parent)


def test_tokenizer_of_another_size_does_not_fit_the_model(tmp_path: Path) -> None:
    """Its ids would lie beyond the embedding."""
    good = example()
    folder = checkpoints.save(replace(good, tokenizer=train_word_level(TEXT + "many more words\n", None)), tmp_path, keep=1)
    assert str(folder) in refusal(folder)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that each example copies from, and restores."""
    return checkpoints.save(example(), tmp_path_factory.mktemp("pristine"), keep=1)


def without_blanks(content: bytes) -> bytes:
    return b"".join(content.split())


@settings(max_examples=150)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), truncate=st.booleans())
def test_no_altered_byte_goes_unnoticed(pristine: Path, name: str, place: float, change: int, truncate: bool) -> None:
    path = pristine / name
    content = path.read_bytes()
    index = int(place * len(content))
    damaged = content[:index] if truncate else content[:index] + bytes([content[index] ^ change]) + content[index + 1 :]
    try:
        path.write_bytes(damaged)
        # JSON may change in its blanks only.
        if name == "checkpoint.json" and without_blanks(damaged) == without_blanks(content):
            assert checkpoints.load(pristine).step == 20
        else:
            assert str(pristine) in refusal(pristine)
    finally:
        path.write_bytes(content)


def test_the_one_before_a_damaged_one_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (5, 6, 7):
        newest = checkpoints.save(example(step), tmp_path, keep=3)
    for folder in (newest, newest.with_name("step-00000006")):
        with (folder / "weights.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.truncate()
    assert checkpoints.load(tmp_path).step == 5
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "step-00000007" in said
    assert "weights.safetensors was altered or truncated" in said
    assert str(newest) in refusal(newest)
