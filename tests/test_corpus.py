"""Reading texts: what is refused, with which words, and the corpus that ships with Python."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
from pathlib import Path
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hvd_lm.data import corpus
from hvd_lm.data.corpus import blocks_of, embedded_corpus, read_text
from hvd_lm.errors import DataError


def refusal(*paths: Path) -> str:
    """The message of the DataError that reading `paths` gives: one line."""
    with pytest.raises(DataError) as caught:
        read_text(paths)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_file(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere.txt")
    assert "nowhere.txt" in message
    assert "No such file" in message


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "folder names no file" in refusal(tmp_path / "folder")


def test_broken_link(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone.txt")
    assert "link.txt" in refusal(tmp_path / "link.txt")


@pytest.mark.parametrize("content", ["", "\n", " \t\r\n\n", "\ufeff", "\ufeff\n"])
def test_blank_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "blank.txt"
    path.write_text(content, encoding="utf-8")
    message = refusal(path)
    assert "blank.txt" in message
    assert "empty" in message


@pytest.mark.parametrize("content", [b"caf\xe9 au lait", b"\xff\xfea\x00", b"ok \xed\xa0\x80", b"cut off \xc3"])
def test_invalid_utf8_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(content)
    message = refusal(path)
    assert "latin1.txt" in message
    assert "UTF-8" in message


def test_invalid_utf8_names_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"x" * 20_000 + b"\xe9")
    assert "byte 20000" in refusal(path)


def test_refused_file_among_good_ones_is_the_one_named(tmp_path: Path) -> None:
    good, blank = tmp_path / "good.txt", tmp_path / "blank.txt"
    good.write_text("text\n", encoding="utf-8")
    blank.touch()
    message = refusal(good, blank)
    assert "blank.txt" in message
    assert "good.txt" not in message


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "bom.txt"
    path.write_bytes(b"\xef\xbb\xbfthe text\n")
    assert read_text([path]).split() == ["the", "text"]


def test_byte_order_mark_of_every_file_is_dropped(tmp_path: Path) -> None:
    paths = [tmp_path / "1.txt", tmp_path / "2.txt"]
    for path in paths:
        path.write_bytes(b"\xef\xbb\xbftext\n")
    assert read_text(paths).split() == ["text", "text"]


def test_byte_order_mark_does_not_shift_the_byte_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bom.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"x" * (3 << 20) + b"\xe9 au lait")
    assert f"byte {(3 << 20) + 3}" in refusal(path)


@pytest.mark.parametrize("text", ["a\r\nb\r\n", "a\rb\r", "a\nb\n"])
def test_line_breaks_of_every_system_are_line_breaks(tmp_path: Path, text: str) -> None:
    (tmp_path / "text").write_bytes(text.encode())
    assert read_text([tmp_path / "text"]) == "a\nb\n"


COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text.txt{suffix}"
    text = "Größe\nzwei Zeilen\n" * 200_000
    path.write_bytes(COMPRESS[suffix](text.encode()))
    assert read_text([path]) == text


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", ["truncated", "not compressed"])
def test_damaged_compressed_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"text.txt{suffix}"
    noise = random.Random(1).randbytes(10_000).hex().encode()
    path.write_bytes(noise if damage == "not compressed" else COMPRESS[suffix](noise)[:-40])
    message = refusal(path)
    assert path.name in message
    assert "damaged" in message


def test_folder_holds_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden"):
        (tmp_path / name).write_text(f"{name}\n")
    assert read_text([tmp_path]).split() == ["a.txt", "b.txt", "sub/c.txt"]


def test_glob_finds_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(f"{name}\n")
    assert read_text([tmp_path / "*.txt"]).split() == ["a.txt", "b.txt"]
    assert "names no file" in refusal(tmp_path / "*.html")


def test_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("text\n")
    assert read_text([tmp_path / "a[1].txt"]) == "text\n"


# --- blocks ----------------------------------------------------------------------------------------------

WORDS = ["\n", " ", "  ", "word", "\u2028", "é", "🙂", "x" * 30]
PIECES = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=60)


@given(pieces=PIECES, size=st.integers(1, 40))
def test_blocks_are_the_text_and_cut_only_what_is_longer_than_a_block(pieces: list[str], size: int) -> None:
    with patch.object(corpus, "BLOCK", size):
        blocks = list(blocks_of(pieces))
    text = "".join(pieces)
    assert "".join(blocks) == text
    assert all(blocks)
    place = 0
    for block in blocks[:-1]:
        place += len(block)
        at_line_break, before_blank = text[place - 1] == "\n", text[place] == " "
        assert at_line_break or before_blank or len(block) >= size


def test_files_come_in_the_order_given(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(f"{name} first\n{name} last\n", encoding="utf-8")
    words = read_text([tmp_path / "c", tmp_path / "a", tmp_path / "b"]).split()
    assert words == ["c", "first", "c", "last", "a", "first", "a", "last", "b", "first", "b", "last"]


def test_last_word_of_a_file_does_not_join_the_next(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("no line break", encoding="utf-8")
    (tmp_path / "2").write_text("at the end", encoding="utf-8")
    assert read_text([tmp_path / "1", tmp_path / "2"]).splitlines() == ["no line break", "at the end"]


def test_one_file_is_read_unchanged(tmp_path: Path) -> None:
    text = "Größe\n\n  two  blanks\u2028🙂\x00\f"
    (tmp_path / "text").write_text(text, encoding="utf-8")
    assert read_text([tmp_path / "text"]) == text


def test_pipe_is_read() -> None:
    """What a shell gives for <(command)."""
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe\n")
    os.close(writing)
    try:
        assert read_text([Path(f"/dev/fd/{reading}")]) == "from a pipe\n"
    finally:
        os.close(reading)


def test_no_file_means_the_embedded_corpus() -> None:
    assert read_text([]) == embedded_corpus()


def test_embedded_corpus_is_english_prose() -> None:
    text = embedded_corpus()
    assert len(text.encode()) > 400_000
    words = text.lower().split()
    common = sum(word in {"the", "of", "a", "to", "is", "and", "in", "that", "for", "an"} for word in words)
    assert 0.15 < common / len(words) < 0.40
    assert len(set(words)) > 5_000


def test_embedded_corpus_is_deterministic() -> None:
    assert embedded_corpus() == embedded_corpus()
    assert embedded_corpus().index('The "assert" statement') < embedded_corpus().index("Assignment statements\n")
