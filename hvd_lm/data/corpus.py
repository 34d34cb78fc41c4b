"""Reading text: files, globs, folders, standard input, compressed or not; or the English prose that every Python ships.

Text flows in blocks, so that memory does not grow with it.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import zstandard

from hvd_lm.errors import DataError

STANDARD_INPUT = Path("-")
BLOCK = 1 << 20
"""Bytes read at once, and characters without any blank after which a text is cut wherever it is."""

_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": zstandard.open}
_DAMAGE = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError)


def embedded_corpus() -> str:
    """Python's own help texts (pydoc_data.topics, about 465 kB of English prose), so that nothing is downloaded."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def read_text(paths: Sequence[Path]) -> str:
    """The texts of `paths`, one after the other; the embedded corpus if there are none.

    Raises DataError naming the file that is missing, unreadable, not UTF-8 or blank.
    """
    if not paths:
        return embedded_corpus()
    return "".join(read_files(find_files(paths)))


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The files that `paths` name: files, globs (``*``, ``?``, ``[``, ``**``), and folders with all that is in them.

    In the order given; the files of a glob or a folder in the order of their names, hidden ones left out.
    Raises DataError for a name, a glob or a folder without any file.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
        elif glob.has_magic(str(path)) and not path.exists():
            found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        else:
            found = [path]
        if not found:
            raise DataError(f"{path} names no file: give a text, a folder that holds texts, or a glob that finds some")
        files += found
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_files(files: Iterable[Path]) -> Iterator[str]:
    """The texts of `files` in chunks, line breaks as ``\\n``; a line of one file never goes on in the next.

    Raises DataError naming the file that is missing, unreadable, damaged, not UTF-8 or blank.
    """
    last = "\n"
    for file in files:
        if not last.endswith("\n"):
            yield "\n"
        for last in _read_file(file):
            yield last


def _read_file(path: Path) -> Iterator[str]:
    name = "standard input" if path == STANDARD_INPUT else str(path)
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line_breaks = io.IncrementalNewlineDecoder(decoder, translate=True)
    blank, offset, block = True, 0, b""
    try:
        with _open(path) as file:
            while block := file.read(BLOCK):
                if text := line_breaks.decode(block):
                    blank = blank and not text.strip()
                    yield text
                offset += len(block)
            if text := line_breaks.decode(b"", final=True):
                blank = blank and not text.strip()
                yield text
    except UnicodeDecodeError as error:
        # What the decoder saw ends with the block, and begins with what the one before had left over.
        byte = offset + len(block) - len(error.object) + error.start
        raise DataError(f"{name} is not UTF-8 text (byte {byte}): convert it, for example with iconv") from error
    except _DAMAGE as error:
        raise DataError(f"{name} is damaged ({' '.join(str(error).split())}): copy or download it again") from error
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error
    if blank:
        raise DataError(f"{name} is empty: give a file that holds text")


def _open(path: Path) -> IO[bytes]:
    if path == STANDARD_INPUT:
        return sys.stdin.buffer
    if opener := _OPENERS.get(path.suffix):
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
    if cut := text.rfind("\n") + 1:
        return cut
    cut = text.rfind(" ", 1, -1)
    while cut > 0 and (text[cut - 1].isspace() or text[cut + 1].isspace()):
        cut = text.rfind(" ", 1, cut)
    return cut if cut > 0 else len(text) if len(text) >= BLOCK else 0
