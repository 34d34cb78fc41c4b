"""Reading texts: which files are meant, what is refused, with which words, and the corpus that ships with Python."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import socket
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import WhitespaceSplit

from hvd_lm.data import corpus
from hvd_lm.data.blanks import words
from hvd_lm.data.corpus import blocks_of, chunks_of, embedded_corpus
from hvd_lm.errors import DataError


def read_text(paths: Sequence[Path]) -> str:
    return "".join(chunks_of(paths))


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


def test_a_file_that_was_cut_needs_no_other_encoding(tmp_path: Path) -> None:
    path = tmp_path / "cut.txt"
    path.write_bytes("Grüße".encode()[:-2])
    assert refusal(path) == f"{path} ends within a UTF-8 character (byte 4): it was cut off; copy or download it again"


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


# --- what is no text -------------------------------------------------------------------------------------


def packed(pack: str) -> bytes:
    """An archive with a text in it."""
    buffer = io.BytesIO()
    if pack == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("e.txt", "plain words\n" * 200)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo("e.txt")
            info.size = 2400
            tar.addfile(info, io.BytesIO(b"plain words\n" * 200))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.tar.gz", gzip.compress(packed("tar")), "is a tar archive: unpack it"),
        ("c.TAR.GZ", gzip.compress(packed("tar")), "is a tar archive: unpack it"),
        ("c.tar", packed("tar"), "is a tar archive: unpack it"),
        ("c.zip", packed("zip"), "is a zip archive: unpack it"),
        ("c.docx", packed("zip"), "is a zip archive: unpack it"),
        ("c.zip.xz", lzma.compress(packed("zip")), "is a zip archive: unpack it"),
        ("c.txt", gzip.compress(b"words\n"), "is compressed by gzip: decompress it, or let its name end with .gz"),
        ("c.txt", bz2.compress(b"words\n"), "is compressed by bzip2: decompress it, or let its name end with .bz2"),
        ("c.txt", lzma.compress(b"words\n"), "is compressed by xz: decompress it, or let its name end with .xz"),
        ("c.txt", zstandard.compress(b"words\n"), "is compressed by zstd: decompress it, or let its name end with .zst"),
        ("c.gz", gzip.compress(gzip.compress(b"words\n")), "is compressed by gzip"),
        ("c.txt", "plain words".encode("utf-16"), "is UTF-16, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8"),
        ("c.txt", "plain words".encode("utf-16-be"), "is UTF-16, not UTF-8"),
        ("c.txt", "plain words".encode("utf-32"), "is UTF-32, not UTF-8"),
        ("c.bin", b"plain words\0 and a NUL", "is binary (a NUL at byte 11)"),
        ("c.bin", b"x" * (3 << 20) + b"\0", f"is binary (a NUL at byte {3 << 20})"),
        ("c.bin", bytes(range(1, 128)).replace(b"\n", b""), None),
        ("c.bin", bytes([1, 2, 3, 4, 65]) * 9, "is binary (control characters)"),
        ("c.pdf", b"%PDF-1.4 plain words", "is a PDF document: convert it to plain text"),
        ("c.rtf", b"{\\rtf1\\ansi plain words}", "is an RTF document: convert it to plain text"),
        ("c.txt", b"BZhang Wei said a few words\n", None),
        ("c.txt", b"\x1b[31mcolours\x1b[0m and a b\x08b of a manual page\n", None),
    ],
    ids=lambda value: "content" if isinstance(value, bytes) else None,  # which holds the time, and xdist wants the same names
)
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: bytes, words: str | None) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if words is None:
        assert read_text([path])
    else:
        assert f"{path} {words}" in refusal(path)


@pytest.mark.parametrize("suffix", [".GZ", ".Xz", ".BZ2", ".ZST"])
def test_suffix_in_any_case(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"text{suffix}").write_bytes(COMPRESS[suffix.lower()](b"words\n"))
    assert read_text([tmp_path / f"text{suffix}"]) == "words\n"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["prepared.json", "training-00000.bin"], "a prepared text"),
        (["config.yaml", "metrics.jsonl"], "the folder of a run"),
        (["checkpoints/step-00000001/x", "config.yaml", "tokenizer.json"], "the folder of a run"),
        (["checkpoint.json", "weights.safetensors"], "a checkpoint"),
        (["model.json", "model.pt", "tokenizer.json"], "an export"),
    ],
)
def test_what_hvd_lm_wrote_is_no_corpus(tmp_path: Path, names: list[str], what: str) -> None:
    (tmp_path / "a.txt").write_text("text\n")
    own = tmp_path / "own"
    for name in names:
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("{}\n")
    assert refusal(own).startswith(f"{own} is {what}")
    assert refusal(tmp_path).startswith(f"{own} is {what}")
    assert what in refusal(own / "*")
    named = next(own / name for name in names if name.endswith((".json", ".jsonl")))
    assert refusal(named).startswith(f"{named} belongs to {what}")
    (own / "notes.txt").write_text("a text of the user\n")
    assert read_text([own / "notes.txt"]) == "a text of the user\n"


def test_zstd_with_a_long_window(tmp_path: Path) -> None:
    """As `zstd --long=31` writes."""
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    path = tmp_path / "long.zst"
    # Without a size the window is that of the parameters.
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path.write_bytes(compressor.compress(b"words\n") + compressor.flush())
    assert read_text([path]) == "words\n"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_that_were_joined(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"joined{suffix}"
    path.write_bytes(COMPRESS[suffix](b"one\n") + COMPRESS[suffix](b"two\n"))
    assert read_text([path]) == "one\ntwo\n"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_long_compressed_file_that_was_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    data = COMPRESS[suffix](random.Random(1).randbytes(300_000).hex().encode())
    for length in (len(data) // 2, len(data) - 3):
        path.write_bytes(data[:length])
        assert "is damaged" in refusal(path)


@settings(max_examples=200)
@given(data=st.data(), suffix=st.sampled_from(["", *COMPRESS]))
def test_any_bytes_are_text_or_one_clear_error(data: st.DataObject, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(COMPRESS.get(suffix, bytes)(b"plain words and some more of them\n" * 3))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("bytes") / f"text{suffix}"
    path.write_bytes(data.draw(st.one_of(st.just(bytes(content)), st.binary(max_size=40))))
    with suppress(DataError):
        assert read_text([path]).encode("utf-8").strip()


# --- the walk --------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a text, and beside it another with one."""
    for name in ("texts/a.txt", "elsewhere/deep/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"{Path(name).name}\n")
    return tmp_path / "texts"


@pytest.mark.parametrize("pattern", ["", "**", "*", "**/*.txt"])
def test_links_to_folders_are_followed(texts: Path, pattern: str) -> None:
    (texts / "link").symlink_to(texts.parent / "elsewhere")
    assert read_text([texts / pattern]).split() == ["a.txt", "b.txt"]


@pytest.mark.parametrize("pattern", ["", "**", "*", "**/*.txt"])
def test_a_loop_of_links_ends(texts: Path, pattern: str) -> None:
    (texts / "link").symlink_to(texts.parent / "elsewhere")
    (texts.parent / "elsewhere" / "up").symlink_to(texts)
    (texts / "self").symlink_to(texts)
    found = read_text([texts / pattern]).split()
    assert found.count("b.txt") <= 2
    assert set(found) == {"a.txt", "b.txt"}


def test_a_folder_that_two_names_lead_to_is_read_twice(texts: Path) -> None:
    (texts / "one").symlink_to(texts.parent / "elsewhere")
    (texts / "two").symlink_to(texts.parent / "elsewhere")
    assert read_text([texts]).split() == ["a.txt", "b.txt", "b.txt"]


@pytest.mark.parametrize("pattern", ["", "**", "*"])
def test_what_a_folder_holds_but_cannot_be_read_is_an_error(texts: Path, pattern: str) -> None:
    (texts / "broken.txt").symlink_to(texts / "gone.txt")
    assert refusal(texts / pattern) == f"cannot read {texts / 'broken.txt'}: No such file or directory; check the name"
    (texts / "broken.txt").unlink()
    (texts / "loop").symlink_to(texts / "loop")
    assert f"cannot read {texts / 'loop'}: Too many levels" in refusal(texts / pattern)
    (texts / "loop").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(texts / "s"))
        assert refusal(texts / pattern).startswith(f"{texts / 's'} is neither a file nor a folder")


@pytest.mark.parametrize("pattern", ["", "**", "*", "locked/*", "locked/a.txt"])
def test_what_may_not_be_entered_is_an_error(texts: Path, pattern: str) -> None:
    """Said of the folder, as for an ordinary user; root may enter everything, so the refusal is made here."""
    (texts / "locked").mkdir()
    real = {"scandir": os.scandir, "stat": os.stat, "open": Path.open}

    def refuse(name: str) -> Callable[..., Any]:
        def act(path: Any, *arguments: Any, **options: Any) -> Any:
            if "locked" in str(path) and (name != "stat" or not str(path).endswith("locked")):
                raise PermissionError(13, "Permission denied", str(path))
            return real[name](path, *arguments, **options)

        return act

    with (
        patch("os.scandir", refuse("scandir")), patch("os.stat", refuse("stat")), patch.object(Path, "open", refuse("open")),
    ):  # fmt: skip
        message = refusal(texts / pattern)
    assert f"cannot read {texts / 'locked'}" in message
    assert ": Permission denied; this user may not" in message


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    assert refusal(tmp_path / ("x" * 300)).endswith(": File name too long; choose a shorter name")


def test_globs(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/b/2.txt", "a/b/c/3.txt", "a/b/.hidden/4.txt", "a/5.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{Path(name).stem}\n")
    expected = {
        "a/*.txt": "1", "a/**/*.txt": "1 2 3", "**/b/*.txt": "2", "**/b/**": "2 3", "*/b/c": "3", "a/b": "2 3", "a/[b]": "2 3",
        "a/?.*": "1 5", "a/b/.h*/*": "4", "a/*": "1 5 2 3", "**": "1 5 2 3",
    }  # fmt: skip
    assert {pattern: " ".join(read_text([tmp_path / pattern]).split()) for pattern in expected} == expected


def test_an_empty_file_among_many_is_nothing(tmp_path: Path) -> None:
    for name, content in {"a": "one\n", "b": "", "c": " \n\n", "d": "two\n"}.items():
        (tmp_path / name).write_text(content)
    assert read_text([tmp_path]) == read_text([tmp_path / "*"]) == "one\ntwo\n"
    assert "b is empty" in refusal(tmp_path / "a", tmp_path / "b")
    for name in "ad":
        (tmp_path / name).write_text("")
    assert refusal(tmp_path) == f"{tmp_path / 'a'} is empty, and so are all 4 files there: give texts"


# --- blocks ----------------------------------------------------------------------------------------------

WORDS = ["\n", " ", "  ", "\t", "word", "\u2028", "\x1c", "\x1f", "é", "🙂", "x" * 30]
PIECES = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=60)


def is_blank(character: str) -> bool:
    """Whether the tokenizers library splits there."""
    return len(WhitespaceSplit().pre_tokenize_str(f"a{character}a")) == 2


def test_words_are_those_of_the_tokenizer() -> None:
    """For every character that Python or the library may take for a blank, and their neighbours."""
    for code in range(0x3100):
        text = f"a{chr(code)}b"
        assert words(text) == [word for word, _ in WhitespaceSplit().pre_tokenize_str(text)], hex(code)


@pytest.mark.parametrize("blank", ["\t", "\u3000", "\v"])
def test_a_long_line_is_cut_between_words(blank: str) -> None:
    text = blank.join(f"w{index}" for index in range(400_000))
    blocks = list(blocks_of([text]))
    assert len(blocks) > 2
    assert sum(len(words(block)) for block in blocks) == 400_000


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
        assert text[place - 1] == "\n" or is_blank(text[place]) or len(block) >= size


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
    text = "Größe\n\n  two  blanks\u2028🙂\x01\f"
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
