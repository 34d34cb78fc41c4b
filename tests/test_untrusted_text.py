"""A prepared folder and a tokenizer that somebody else made: what they hold is right, or one clear error; never anything else."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_lm.checkpoint.files import checksum, sha256
from hvd_lm.data import shards
from hvd_lm.data import tokenizer as tokenizers
from hvd_lm.data.corpus import blocks_of
from hvd_lm.data.prepare import PrepareConfig, prepare
from hvd_lm.data.tokenizer import KINDS, TokenizerKind, train_tokenizer
from hvd_lm.errors import CheckpointError, DataError, HvdLmError

Result = TypeVar("Result")

TEXT = "two words and a naïve one\n" * 30
ODD: list[Any] = [
    None, True, -1, 0, 1, 10**30, 1e308, float("nan"), "", "x", "\ud800", "../../etc/passwd", "/dev/zero", ">f8", "O", [], {}, [[]],
    {"type": "Split"},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of all values within a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def mutate(data: st.DataObject, value: Any) -> Any:
    """`value` with one to three of the values within it replaced, removed, or doubled."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(value))))
        if not path:
            return data.draw(st.sampled_from(ODD))
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        match data.draw(st.sampled_from(["replace", "remove", "swap"])):
            case "replace":
                parent[path[-1]] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
            case "remove":
                del parent[path[-1]]
            case "swap":
                other = list(parent) if isinstance(parent, dict) else range(len(parent))
                parent[path[-1]] = copy.deepcopy(parent[data.draw(st.sampled_from(list(other)))])
    return value


@pytest.fixture(scope="module", params=["word", "bpe"])
def prepared_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.txt").write_text(TEXT)
    size = 260 if request.param == "bpe" else None
    config = PrepareConfig(text=(folder / "text.txt",), out=folder / "out", tokenizer=request.param, vocabulary_size=size)
    return prepare(config).folder


def write_header(folder: Path, description: Any) -> None:
    """With a checksum that is right."""
    if isinstance(description, dict):
        description = {key: value for key, value in description.items() if key != "checksum"}
        description["checksum"] = checksum(description)
    (folder / "prepared.json").write_text(json.dumps(description))


def one_line(kind: type[HvdLmError], load: Callable[[], Result]) -> Result | None:
    """What `load` returns; None if it raises a `kind` of one line."""
    message = ""
    try:
        return load()
    except kind as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    return None


def opens_or_is_refused(folder: Path) -> None:
    """What opens holds tokens of its vocabulary; what does not is one line."""
    if (prepared := one_line(DataError, lambda: shards.load(folder))) is None:
        return
    for split, tokens in prepared.tokens.items():
        whole = tokens[: len(tokens)]
        assert len(whole) == prepared.counts[split].tokens
        assert not len(whole) or 0 <= int(whole.min()) <= int(whole.max()) < prepared.tokenizer.vocabulary_size
        prepared.tokenizer.decode(whole)


@settings(max_examples=150)
@given(data=st.data())
def test_any_header(data: st.DataObject, prepared_folder: Path) -> None:
    header = (prepared_folder / "prepared.json").read_text()
    try:
        write_header(prepared_folder, mutate(data, json.loads(header)))
        opens_or_is_refused(prepared_folder)
    finally:
        (prepared_folder / "prepared.json").write_text(header)


@settings(max_examples=60)
@given(data=st.data())
def test_any_shard_that_the_header_vouches_for(data: st.DataObject, prepared_folder: Path) -> None:
    header = (prepared_folder / "prepared.json").read_text()
    path = prepared_folder / "training-00000.bin"
    content = path.read_bytes()
    description = json.loads(header)
    size = data.draw(st.integers(0, 40))
    try:
        path.write_bytes(data.draw(st.binary(min_size=size, max_size=size)))
        shard = description["splits"]["training"]["shards"][0]
        description["number_format"] = data.draw(st.sampled_from(["|u1", "<u2", "<u4", "<i2", "<f4"]))
        shard["sha256"] = sha256(path)
        shard["tokens"] = description["splits"]["training"]["tokens"] = size // np.dtype(description["number_format"]).itemsize
        write_header(prepared_folder, description)
        opens_or_is_refused(prepared_folder)
    finally:
        path.write_bytes(content)
        (prepared_folder / "prepared.json").write_text(header)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "/etc/hostname"}, "'/etc/hostname' is not the name of shard 0"),
        ({"file": "../out/training-00000.bin"}, "is not the name of shard 0"),
        ({"tokens": -1}, "-1 where a count should be"),
        ({"tokens": 1}, "hold other than"),
    ],
)
def test_a_shard_elsewhere_or_of_another_size(prepared_folder: Path, change: dict[str, Any], words: str) -> None:
    header = (prepared_folder / "prepared.json").read_text()
    description = json.loads(header)
    description["splits"]["training"]["shards"][0] |= change
    try:
        write_header(prepared_folder, description)
        with pytest.raises(DataError) as caught:
            shards.load(prepared_folder)
        assert words in str(caught.value)
    finally:
        (prepared_folder / "prepared.json").write_text(header)


def test_a_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    folder = prepare(PrepareConfig(text=(tmp_path / "text.txt",), out=tmp_path / "out")).folder
    path = folder / "training-00000.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    description = json.loads((folder / "prepared.json").read_text())
    description["splits"]["training"]["shards"][0]["sha256"] = sha256(path)
    write_header(folder, description)
    with pytest.raises(DataError, match=r"training-00000\.bin holds token 255, but the vocabulary has 8"):
        shards.load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "training-00000.bin"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    folder = prepare(PrepareConfig(text=(tmp_path / "text.txt",), out=tmp_path / "out")).folder
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match="cannot be used"):
        shards.load(folder)


def test_a_folder_of_wider_numbers_still_opens(tmp_path: Path) -> None:
    """Small vocabularies were written as uint16 once."""
    (tmp_path / "text.txt").write_text(TEXT)
    prepared = prepare(PrepareConfig(text=(tmp_path / "text.txt",), out=tmp_path / "out", tokenizer="byte"))
    folder = prepared.folder
    before = {split: tokens[: len(tokens)].copy() for split, tokens in prepared.tokens.items()}
    assert (folder / "training-00000.bin").stat().st_size == prepared.counts["training"].bytes
    description = json.loads((folder / "prepared.json").read_text())
    assert description["number_format"] == "|u1"
    description["number_format"] = "<u2"
    for split in description["splits"].values():
        for shard in split["shards"]:
            path = folder / shard["file"]
            path.write_bytes(np.fromfile(path, np.uint8).astype("<u2").tobytes())
            shard["sha256"] = sha256(path)
    write_header(folder, description)
    wide = shards.load(folder)
    for split, tokens in before.items():
        np.testing.assert_array_equal(wide.tokens[split][: len(tokens)], tokens)


# --- the tokenizer ---------------------------------------------------------------------------------------


def of_kind(kind: TokenizerKind) -> tokenizers.Tokenizer:
    return train_tokenizer(blocks_of([TEXT]), kind, 262 if kind == "bpe" else None)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80)
@given(data=st.data())
def test_any_tokenizer(data: st.DataObject, kind: TokenizerKind, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "tokenizer.json"
    path.write_text(json.dumps(mutate(data, json.loads(of_kind(kind).to_json()))))
    if (tokenizer := one_line(CheckpointError, lambda: tokenizers.load(path))) is None:
        return
    ids = tokenizer.encode(TEXT)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocabulary_size
    tokenizer.decode(range(tokenizer.vocabulary_size))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_built_anew_as_it_was(kind: TokenizerKind) -> None:
    """To the letter: what a run's text is known by depends on it."""
    made = of_kind(kind).to_json()
    assert tokenizers.from_json(made).to_json() == made


def test_merges_as_older_versions_of_the_library_wrote_them() -> None:
    tokenizer = of_kind("bpe")
    description = json.loads(tokenizer.to_json())
    description["model"]["merges"] = [" ".join(pair) for pair in description["model"]["merges"]]
    assert tokenizers.from_json(json.dumps(description)).to_json() == tokenizer.to_json()


@pytest.mark.parametrize("merge", [["t", "zzz"], ["t", "t"], ["t"], "t", ["", "t"], 5])
def test_merges_that_make_no_token(merge: object) -> None:
    """Of some the library would end in a panic, which is no Exception."""
    description = json.loads(of_kind("bpe").to_json())
    description["model"]["merges"] = [merge]
    with pytest.raises(CheckpointError, match="which are not two tokens that make a third"):
        tokenizers.from_json(json.dumps(description))


@pytest.mark.parametrize(
    ("kind", "part", "rule"),
    [
        ("char", "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}),
        ("word", "normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        ("word", "normalizer", None),
        ("bpe", "added_tokens", [{"id": 0, "content": "!", "single_word": False, "lstrip": False}]),
    ],
)
def test_rules_of_a_foreign_tokenizer_do_not_run(kind: TokenizerKind, part: str, rule: object) -> None:
    description = json.loads(of_kind(kind).to_json()) | {part: rule}
    with pytest.raises(CheckpointError, match=f"its {part} is not that of hvd_lm's {kind} tokens"):
        tokenizers.from_json(json.dumps(description))
