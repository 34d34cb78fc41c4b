"""Reading texts: what is refused, with which words, and the corpus that ships with Python."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvd_lm.data.corpus import embedded_corpus, read_text
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


def test_directory(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert "directory" in message


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
