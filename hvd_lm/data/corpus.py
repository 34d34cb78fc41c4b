"""Reading text: files, standard input, compressed or not; or the English prose that every Python ships.

Text flows in blocks, so that memory does not grow with it.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import zstandard

from hvd_lm.data.blanks import last_place_between_words
from hvd_lm.data.recognize import binary, not_text
from hvd_lm.data.walk import STANDARD_INPUT, TextFile, find_files
from hvd_lm.data.zstd import open_zstandard
from hvd_lm.errors import DataError, why

BLOCK = 1 << 20
"""Bytes read at once, and characters without any blank after which a text is cut wherever it is."""

_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": open_zstandard}
_DAMAGE = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError)


def embedded_corpus() -> str:
    """Python's own help texts (pydoc_data.topics, about 465 kB of English prose), so that nothing is downloaded."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def chunks_of(paths: Sequence[Path]) -> Iterator[str]:
    """The texts of `paths` in chunks, one after the other; the embedded corpus if there are none.

    Raises DataError naming what is missing, unreadable, not UTF-8 text or blank.
    """
    return read_files(find_files(paths)) if paths else iter([embedded_corpus()])


def read_files(files: Iterable[TextFile]) -> Iterator[str]:
    """The texts of `files` in chunks, line breaks as ``\\n``; a line of one file never goes on in the next.

    Raises DataError naming the file that is missing, unreadable, damaged, not UTF-8 text, or blank though it was named; or if
    all are blank.
    """
    last, found = "\n", False
    blank: list[TextFile] = []
    for file in files:
        begins = True
        for chunk in _read_file(file):
            if begins and not last.endswith("\n"):
                yield "\n"
            begins, found = False, True
            last = chunk
            yield chunk
        if begins:
            blank.append(file)
    if not found:
        raise DataError(f"{blank[0]} is empty, and so are all {len(blank)} files there: give texts")


def _read_file(file: TextFile) -> Iterator[str]:
    """The text of a file; nothing if it is blank and was not named."""
    blank: list[str] = []
    chunks = _decode(file)
    for chunk in chunks:
        blank.append(chunk)
        if chunk.strip():
            yield from blank
            yield from chunks
            return
    if file.named:
        raise DataError(f"{file} is empty: give a file that holds text")


def _decode(file: TextFile) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line_breaks = io.IncrementalNewlineDecoder(decoder, translate=True)
    offset, block = 0, b""
    try:
        with _open(file.path) as opened:
            while block := opened.read(BLOCK):
                _refuse_what_is_no_text(file, block, offset)
                if text := line_breaks.decode(block):
                    yield text
                offset += len(block)
            if text := line_breaks.decode(b"", final=True):
                yield text
    except UnicodeDecodeError as error:
        # What the decoder saw ends with the block, and begins with what the one before had left over.
        byte = offset + len(block) - len(error.object) + error.start
        if not block:
            what = f"ends within a UTF-8 character (byte {byte}): it was cut off; copy or download it again"
            raise DataError(f"{file} {what}") from error
        raise DataError(f"{file} is not UTF-8 text (byte {byte}): convert it, for example with iconv") from error
    except _DAMAGE as error:
        raise DataError(f"{file} is damaged ({' '.join(str(error).split())}): copy or download it again") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {why(error, file.path)}") from error


def _refuse_what_is_no_text(file: TextFile, block: bytes, offset: int) -> None:
    if offset == 0 and (what := not_text(block)):
        raise DataError(f"{file} is {what}")
    if b"\0" in block:
        raise DataError(f"{file} is {binary(offset + block.index(0))}")


def _open(path: Path) -> IO[bytes]:
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise DataError("standard input is closed: give a file, or pipe a text into hvd-lm")
        return sys.stdin.buffer
    if opener := _OPENERS.get(path.suffix.lower()):
        return opener(path)  # type: ignore[no-any-return]
    return path.open("rb")


def blocks_of(chunks: Iterable[str]) -> Iterator[str]:
    """The same text, cut where no token is cut: after a line break, before a blank, and only within a very long word elsewhere."""
    rest = ""
    for chunk in chunks:
        for start in range(0, len(chunk), BLOCK):
            rest += chunk[start : start + BLOCK]
            if cut := _safe_cut(rest):
                yield rest[:cut]
                rest = rest[cut:]
    if rest:
        yield rest


def _safe_cut(text: str) -> int:
    """Where to cut `text`; 0 if it should grow first."""
    return text.rfind("\n") + 1 or last_place_between_words(text) or (len(text) if len(text) >= BLOCK else 0)
