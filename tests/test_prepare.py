"""hvd-lm prepare: shards hold exactly the text, splits are contiguous, memory stays small, and nothing half-made is left."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread
from unittest.mock import patch

import launcher
import numpy as np
import pools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.data import corpus, shards
from hvd_lm.data.prepare import PrepareConfig, prepare
from hvd_lm.data.shards import Prepared, ShardedTokens, ShardWriter
from hvd_lm.data.tokenizer import KINDS, TokenizerKind, train_word_level
from hvd_lm.errors import ConfigError, DataError

LINES = [f"line {i % 50} of the text , with <unk> words and {i * i % 97} numbers ." for i in range(2000)]
TEXT = "".join(f" {line} \n" for line in LINES)


def text_of(prepared: Prepared) -> str:
    """All splits, one after the other."""
    return "".join(prepared.tokenizer.decode(tokens[: len(tokens)]) for tokens in prepared.tokens.values())


def make(tmp_path: Path, text: str = TEXT, **settings: object) -> Prepared:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    return prepare(PrepareConfig(text=(tmp_path / "text.txt",), out=tmp_path / "out", **settings))  # type: ignore[arg-type]


# --- what is in the folder -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_splits_are_the_text(kind: TokenizerKind, tmp_path: Path) -> None:
    prepared = make(tmp_path, tokenizer=kind, vocabulary_size=320 if kind == "bpe" else None)
    if kind == "word":
        assert [line.split() for line in text_of(prepared).splitlines()] == [line.split() for line in LINES]
    else:
        assert text_of(prepared) == TEXT
    characters = {split: counts.characters for split, counts in prepared.counts.items()}
    assert sum(characters.values()) == len(TEXT)
    assert abs(characters["validation"] - len(TEXT) * 0.05) < 100
    assert abs(characters["test"] - len(TEXT) * 0.05) < 100
    for split, counts in prepared.counts.items():
        assert counts.tokens == len(prepared.tokens[split])
    assert sum(counts.words for counts in prepared.counts.values()) in range(len(TEXT.split()), len(TEXT.split()) + 3)


def test_words_and_lines_are_never_cut_by_a_split(tmp_path: Path) -> None:
    prepared = make(tmp_path, validation_share=0.3, test_share=0.3)
    for tokens in prepared.tokens.values():
        assert tokens[len(tokens) - 1 :] == prepared.tokenizer.end_of_line_id
    assert sum(counts.lines for counts in prepared.counts.values()) == len(LINES)


def test_bytes_are_split_where_the_share_says(tmp_path: Path) -> None:
    """As the usual 90/5/5 million bytes of enwik8; a character stays whole."""
    text = "aé🙂" * 1000
    prepared = make(tmp_path, text, tokenizer="byte")
    assert [counts.tokens for counts in prepared.counts.values()] == [6300, 350, 350]
    assert text_of(prepared) == text


@given(
    text=st.text(st.sampled_from("ab \né🙂"), min_size=1, max_size=200).filter(str.strip),
    shares=st.tuples(*[st.floats(0, 0.49)] * 2),
    block=st.integers(1, 50),
)
@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_no_token_is_lost_between_splits_and_blocks(
    kind: TokenizerKind, text: str, shares: tuple[float, float], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("p")
    with patch.object(corpus, "BLOCK", block), suppress(DataError):
        prepared = make(folder, text, tokenizer=kind, validation_share=shares[0], test_share=shares[1])
        assert sum(counts.characters for counts in prepared.counts.values()) == len(text)
        if kind == "byte":
            assert text_of(prepared) == text
        if kind == "word" and block > 4 * len(text):
            assert sum(counts.words for counts in prepared.counts.values()) == len(text.split())
        return
    assert (1 - sum(shares)) * len(text) < 1, "only what leaves nothing to train on is refused"


def test_splits_from_files(tmp_path: Path) -> None:
    (tmp_path / "valid").write_text("a line to validate\n")
    (tmp_path / "test").write_text("another one to test\n")
    prepared = make(tmp_path, "the training text\n" * 9, validation_data=(tmp_path / "valid",), test_data=(tmp_path / "test",))
    assert prepared.counts["training"].lines == 9
    assert prepared.tokenizer.decode(prepared.split("validation")[0:9]) == "<unk> <unk> <unk> <unk>\n"
    assert prepared.counts["test"].unknown_share == pytest.approx(4 / 5)


def test_vocabulary_is_of_the_training_split(tmp_path: Path) -> None:
    prepared = make(tmp_path, "known words\n" * 90 + "unheard\n" * 10, validation_share=0.02, test_share=0)
    assert prepared.counts["training"].unknown == 0
    assert "validation" in prepared.tokens
    assert "test" not in prepared.tokens
    with pytest.raises(DataError, match="has no test split: it has training, validation"):
        prepared.split("test")


def test_tokenizer_of_another_text(tmp_path: Path) -> None:
    first = make(tmp_path)
    (tmp_path / "more.txt").write_text("line of quite other words\n")
    second = prepare(
        PrepareConfig(
            text=(tmp_path / "more.txt",), out=tmp_path / "more", tokenizer_file=first.folder / "tokenizer.json", test_share=0,
            validation_share=0,
        )
    )  # fmt: skip
    assert second.tokenizer.to_json() == first.tokenizer.to_json()
    assert second.tokenizer.decode(second.split("training")[0:6]) == "line of <unk> <unk> words\n"


def test_pretokenized_text_keeps_its_unknown_words_and_tells_their_rate(tmp_path: Path) -> None:
    prepared = make(tmp_path, test_share=0, validation_share=0)
    counts = prepared.counts["training"]
    assert counts.unknown == TEXT.count("<unk>")
    header = json.loads((prepared.folder / "prepared.json").read_text())
    assert header["splits"]["training"]["unknown_share"] == pytest.approx(counts.unknown / counts.tokens)


@pytest.mark.parametrize(("vocabulary", "expected"), [(256, "|u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_number_format_by_need(vocabulary: int, expected: str) -> None:
    assert shards.number_format(vocabulary).str == expected


@given(
    arrays=st.lists(st.lists(st.integers(0, 999), max_size=7), max_size=8),
    shard_tokens=st.integers(1, 9),
    where=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_shards_are_one_sequence(
    arrays: list[list[int]], shard_tokens: int, where: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, "training", 1000, shard_tokens)
    writer.write_all(np.array(array, np.int32) for array in arrays)
    whole = [token for array in arrays for token in array]
    assert sum(shard.tokens for shard in writer.shards) == len(whole)
    assert all(shard.tokens == shard_tokens for shard in writer.shards[:-1])
    read = ShardedTokens([np.fromfile(folder / shard.file, "<u2") for shard in writer.shards])
    assert len(read) == len(whole)
    assert read[where[0] : where[1]].tolist() == whole[where[0] : where[1]]


# --- where text comes from -------------------------------------------------------------------------------


def test_compressed_folder_and_standard_input_give_the_same_shards(tmp_path: Path) -> None:
    plain = make(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text.gz").write_bytes(gzip.compress(TEXT.encode()))
    zipped = prepare(PrepareConfig(text=(tmp_path / "folder",), out=tmp_path / "zipped"))
    assert zipped.checksum == plain.checksum
    command = [sys.executable, "-m", "hvd_lm", "prepare", "-", "--out", tmp_path / "piped"]
    done = subprocess.run(command, input=TEXT, capture_output=True, text=True, check=True)
    assert shards.load(tmp_path / "piped").checksum == plain.checksum
    assert done.stdout.splitlines()[0].startswith("word tokenizer, vocabulary 85; in ")
    assert "0.00% unknown" not in done.stdout
    assert sorted(path.name for path in (tmp_path / "piped").iterdir()) == [
        "prepared.json", "test-00000.bin", "tokenizer.json", "training-00000.bin", "validation-00000.bin",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_can_be_read_only_once(tmp_path: Path, suffix: str) -> None:
    """A shell's <(command), and a pipe with a name; three passes are made over the text."""
    plain = make(tmp_path)
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    content = gzip.compress(TEXT.encode()) if suffix else TEXT.encode()
    writer = Thread(target=pipe.write_bytes, args=(content,), daemon=True)
    writer.start()
    piped = prepare(PrepareConfig(text=(pipe,), out=tmp_path / "piped"))
    writer.join(10)
    assert piped.checksum == plain.checksum
    assert sorted(path.suffix for path in (tmp_path / "piped").iterdir()) == [".bin", ".bin", ".bin", ".json", ".json"]


def test_pipe_without_text_is_named(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    try:
        with pytest.raises(DataError, match=f"/dev/fd/{reading} is empty"):
            prepare(PrepareConfig(text=(f"/dev/fd/{reading}",), out=tmp_path / "out"))  # type: ignore[arg-type]
    finally:
        os.close(reading)


def test_a_signal_ends_prepare_tidily(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hvd_lm", "prepare", "-", "--out", tmp_path / "out"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        while not (tmp_path / ".out.partial").exists():
            time.sleep(0.05)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def peak_of_preparing(path: Path, kind: TokenizerKind) -> float:
    """Megabytes that preparing `path` takes, in a process of its own; the result is in a folder beside it."""
    code = f"""if True:
        from hvd_lm.data.prepare import PrepareConfig, prepare
        prepare(PrepareConfig(text=({str(path)!r},), out={f"{path}.out"!r}, tokenizer={kind!r}))
        print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Sixteen times the text, 60 MB, costs no more than some blocks; the benchmark of that name does it with gigabytes."""
    peaks = []
    for copies in (40, 640):
        path = tmp_path / f"{copies}.txt"
        path.write_text(TEXT * copies)
        peaks.append(peak_of_preparing(path, "char"))
    assert path.stat().st_size > 50e6
    assert peaks[1] - peaks[0] < 25, f"{peaks} MB"


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_line_with_tabs(kind: TokenizerKind, tmp_path: Path) -> None:
    """Longer than many blocks, cut only where the tokenizer splits: every word counts once, and splits end where they should."""
    words = 260_000
    prepared = make(tmp_path, "\t".join(f"w{index % 900}" for index in range(words)), tokenizer=kind, vocabulary_size=902)
    counts = prepared.counts
    assert sum(split.words for split in counts.values()) == words
    assert counts["test"].words == pytest.approx(0.05 * words, rel=0.01)
    if kind == "word":
        assert sum(split.unknown for split in counts.values()) == 0


@pytest.mark.parametrize("kind", ["word", "byte"])
def test_a_line_of_a_hundred_megabytes(kind: TokenizerKind, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("extraordinarily many syllables " * 3_300_000)
    assert path.stat().st_size > 100e6
    assert peak_of_preparing(path, kind) < 500
    counts = shards.load(Path(f"{path}.out")).counts.values()
    assert sum(split.words for split in counts) == 9_900_000
    assert sum(split.tokens for split in counts) == (9_900_003 if kind == "word" else path.stat().st_size)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("words and a\x01b\n\x7f\n" * 50, id="control characters"),
        pytest.param("🙂 👩\u200d👩\u200d👧\n" * 50, id="emoji"),
        pytest.param("a\r\nb\r\n" * 50, id="CRLF"),
        pytest.param("\n\n\na\n\n\n" * 50, id="empty lines"),
        pytest.param("x" * 3_000_000, id="one word"),
        pytest.param("é " * 1_500_000, id="one line"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_odd_texts(kind: TokenizerKind, text: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(text.encode())
    prepared = prepare(PrepareConfig(text=(tmp_path / "text.txt",), out=tmp_path / "out", tokenizer=kind))
    text = text.replace("\r\n", "\n")
    if kind in ("byte", "bpe") and len(text) < 10_000:
        assert text_of(prepared) == text
    assert sum(counts.characters for counts in prepared.counts.values()) == len(text)


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"caf\xe9 au lait", "not UTF-8 text (byte 3)"),
        (b"caf\xc3", "was cut off"),
        (b"", "is empty"),
        (b"a", "too short for a training split"),
        (b"a\0b c\n", "binary (a NUL at byte 1)"),
    ],
)
def test_bad_text_leaves_nothing_behind(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepare(PrepareConfig(text=(tmp_path / "text.txt",), out=tmp_path / "out", validation_share=0.5))
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_an_existing_folder_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConfigError, match="out exists already: give another folder, or remove it first"):
        make(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_rest_of_a_killed_run_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "training-00007.bin").write_bytes(b"rest")
    make(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give texts to prepare, or --corpus"),
        ({"text": ("a",), "corpus": "ptb"}, "or --corpus (one of them)"),
        ({"text": ("a",), "validation_share": 0.5, "test_share": 0.5}, "leave nothing to train on"),
        ({"text": ("a",), "test_share": -0.1}, "--test-share must be in [0, 1)"),
        ({"text": ("a",), "vocabulary_size": 1}, "--vocabulary-size must be at least 2"),
        ({"text": ("a",), "vocabulary_size": 9, "tokenizer_file": "b"}, "leave --vocabulary-size away"),
        ({"text": ("a",), "mirror": "http://localhost"}, "--mirror needs a --corpus"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PrepareConfig(**settings)  # type: ignore[arg-type]
    assert words in str(caught.value)


@given(data=st.data())
def test_any_altered_byte_is_noticed(data: st.DataObject, prepared_folder: Path) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in prepared_folder.iterdir())))
    path = prepared_folder / name
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        damaged = content[:place]
    else:
        damaged = content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    path.write_bytes(damaged)
    # Blanks between the values of the header mean nothing.
    harmless = name == "prepared.json" and means_the_same(damaged, content)
    try:
        with nullcontext() if harmless else pytest.raises(DataError, match="cannot be used"):
            shards.load(prepared_folder)
    finally:
        path.write_bytes(content)


def means_the_same(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    return make(folder, "two words\n" * 10, validation_share=0.05, test_share=0).folder


# --- training on it --------------------------------------------------------------------------------------


def test_training_on_a_prepared_folder_is_training_on_its_text(framework: str, tmp_path: Path) -> None:
    """The same tokens, so the same losses, bit for bit."""
    (tmp_path / "valid.txt").write_text("".join(f"{line}\n" for line in LINES[:50]))
    make(tmp_path, validation_data=(tmp_path / "valid.txt",), test_share=0)
    small = [*launcher.SMALL[2:], "--framework", framework, "--steps", "3", "--threads", "1", "--deterministic"]
    plain = ["--data", tmp_path / "text.txt", "--validation-data", tmp_path / "valid.txt"]
    pools.hvd_lm(1, "train", *small, "--out", tmp_path / "1", "--data", tmp_path / "out")
    pools.hvd_lm(1, "train", *small, "--out", tmp_path / "2", *plain)
    assert launcher.losses(tmp_path / "1") == launcher.losses(tmp_path / "2")
    assert launcher.metrics(tmp_path / "1")[-1]["validation_loss"] == launcher.metrics(tmp_path / "2")[-1]["validation_loss"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--vocabulary-size", "50"], "has a vocabulary of 85, not 50: leave --vocabulary-size away"),
        (["--validation-data", "OTHER"], "was prepared with another tokenizer"),
    ],
)
def test_what_does_not_fit_a_prepared_folder(tmp_path: Path, flags: list[str], words: str) -> None:
    make(tmp_path)
    (tmp_path / "other").mkdir()
    make(tmp_path / "other", "another text\n" * 90)
    flags = [str(tmp_path / "other" / "out") if flag == "OTHER" else flag for flag in flags]
    ended = launcher.hvd_lm(1, "train", "--data", tmp_path / "out", "--out", tmp_path / "run", *flags)
    assert ended.code == 2
    assert words in ended.output
    assert len(ended.output.splitlines()) == 1


def test_tokenizer_is_trained_on_whole_words(tmp_path: Path) -> None:
    assert make(tmp_path, test_share=0, validation_share=0).tokenizer.to_json() == train_word_level(TEXT, None).to_json()
