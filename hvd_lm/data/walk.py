"""Which files a user means by a name: a file, a folder with all that is in it, or a glob.

Nothing is left out without a word but hidden files: links are followed, and what cannot be read is an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path
from typing import NoReturn

from hvd_lm.data.recognize import may_be_own, own_folder
from hvd_lm.errors import DataError, why

STANDARD_INPUT = Path("-")


@dataclass(frozen=True)
class TextFile:
    """A file that holds text."""

    path: Path
    named: bool = True
    """By the user, not found in a folder: then it must not be blank."""

    def is_pipe(self) -> bool:
        """Whether it can be read only once: standard input, or no regular file. Raises DataError if there is none."""
        try:
            return self.path == STANDARD_INPUT or not stat.S_ISREG(os.stat(self.path).st_mode)
        except OSError as error:
            raise DataError(f"cannot read {self}: {why(error, self.path)}") from error

    def __str__(self) -> str:
        return "standard input" if self.path == STANDARD_INPUT else str(self.path)


def find_files(paths: Iterable[Path]) -> list[TextFile]:
    """The files that `paths` name: files, globs (``*``, ``?``, ``[``, ``**``), and folders with all that is in them.

    In the order given; the files of a glob or a folder in the order of their names, hidden ones left out.
    Raises DataError for a name, a glob or a folder without any file, for what cannot be read, and for what hvd-lm wrote.
    """
    files: list[TextFile] = []
    for path in paths:
        try:
            if path.is_dir():
                found = [TextFile(file, named=False) for file in sorted(_walk(path))]
            elif has_magic(str(path)) and not path.exists():
                found = [TextFile(file, named=False) for file in sorted(_expand(path))]
            else:
                found = [TextFile(path)]
            for file in found:
                _refuse_own(file.path)
        except OSError as error:
            raise DataError(f"cannot read {error.filename or path}: {why(error, Path(error.filename or path))}") from error
        if not found:
            raise DataError(f"{path} names no file: give a text, a folder that holds texts, or a glob that finds some")
        files += found
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """The files in `folder` and below it. Raises OSError or DataError."""
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while pending:
        place, above = pending.pop()
        status = os.stat(place)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue  # a link back up: its files are found already
        entries = _entries(place)
        if own := own_folder([entry.name for entry in entries]):
            raise DataError(f"{place} is {own}, not a text: give the texts without it, or a prepared text by itself")
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = place / entry.name
            if entry.is_dir():
                pending.append((path, above | {identity}))
            else:
                if not entry.is_file():
                    _refuse_odd(path)
                yield path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _refuse_odd(path: Path) -> NoReturn:
    """Raises OSError for a link to nothing, DataError for a device, a pipe or a socket, which nobody means by its folder."""
    os.stat(path)
    raise DataError(f"{path} is neither a file nor a folder: remove it, or give the texts without it")


def _expand(pattern: Path) -> Iterator[Path]:
    """The files that a glob finds; of a folder that it finds, all that is in it. Raises OSError or DataError."""
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    return _matches(Path(*parts[:first]), parts[first:])


def _matches(place: Path, pattern: Sequence[str]) -> Iterator[Path]:
    if not pattern:
        if place.is_dir():
            yield from _walk(place)
        else:
            if not place.is_file():
                _refuse_odd(place)
            yield place
        return
    part, *rest = pattern
    if not place.is_dir():
        return
    if part == "**":
        yield from (file for file in _walk(place) if _fits(file.relative_to(place).parts, pattern))
    elif has_magic(part):
        for entry in _entries(place):
            if fnmatchcase(entry.name, part) and entry.name.startswith(".") <= part.startswith("."):
                yield from _matches(place / entry.name, rest)
    elif os.path.lexists(place / part):
        yield from _matches(place / part, rest)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether `parts` fit a pattern in which ``**`` stands for any number of folders, and at its end for what is in them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _refuse_own(path: Path) -> None:
    """Raises DataError for a file that hvd-lm wrote, as ``data/*`` finds them in a prepared text."""
    if not may_be_own(path.name):
        return
    try:
        own = own_folder(os.listdir(path.parent))
    except OSError:
        return  # a file may be read in a folder that may not be listed
    if own:
        raise DataError(f"{path} belongs to {own}, and is no text: give the texts, or the folder of a prepared text by itself")
