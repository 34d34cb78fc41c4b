"""Reading text: files, or the English prose that every Python ships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hvd_lm.errors import DataError


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
    return "\n".join(_read_file(path) for path in paths)


def _read_file(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): convert it, for example with iconv") from error
    if not text.strip():
        raise DataError(f"{path} is empty: give a file that holds text")
    return text
