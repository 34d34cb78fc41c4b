"""What is no text, though some of it would decode: told by what a file holds, or by the folder of hvd-lm's that it is in."""

from __future__ import annotations

from collections.abc import Collection

_UNPACK = "unpack it, and give the texts that it holds"
_DECOMPRESS = "decompress it, or let its name end with"
_CONVERT = "convert it to plain text"

_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"PK\x03\x04", f"a zip archive: {_UNPACK}"),
    (0, b"PK\x05\x06", f"a zip archive: {_UNPACK}"),
    (257, b"ustar", f"a tar archive: {_UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7z archive: {_UNPACK}"),
    (0, b"Rar!\x1a\x07", f"a rar archive: {_UNPACK}"),
    (0, b"!<arch>\n", f"an ar archive: {_UNPACK}"),
    (0, b"\x1f\x8b", f"compressed by gzip: {_DECOMPRESS} .gz"),
    (0, b"\xfd7zXZ\x00", f"compressed by xz: {_DECOMPRESS} .xz"),
    (0, b"BZh", f"compressed by bzip2: {_DECOMPRESS} .bz2"),
    (0, b"\x28\xb5\x2f\xfd", f"compressed by zstd: {_DECOMPRESS} .zst"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4: decompress it"),
    (0, b"\x1f\x9d", "compressed by compress: decompress it"),
    (0, b"%PDF-", f"a PDF document: {_CONVERT}"),
    (0, b"{\\rtf", f"an RTF document: {_CONVERT}"),
    (0, b"\xff\xfe\x00\x00", "UTF-32"),
    (0, b"\x00\x00\xfe\xff", "UTF-32"),
    (0, b"\xff\xfe", "UTF-16"),
    (0, b"\xfe\xff", "UTF-16"),
)
"""Offset, bytes there, what they tell. Of the bzip2 mark a digit and six bytes more follow, checked below."""
_BZIP2_BLOCK = b"1AY&SY"

_CONTROL = bytes([*range(1, 8), *range(14, 27), 127])
"""What a text has few of: not blanks, backspace (manual pages) and escape (colours)."""


def not_text(head: bytes) -> str | None:
    """What a file that begins with `head` is instead of a text, and what to do with it; None if it may be one.

    Binary is what has a NUL in it, or more than 30 % control characters (as Perl's -B).
    """
    for offset, mark, what in _MARKS:
        if head.startswith(mark, offset) and (mark != b"BZh" or head[4:10] == _BZIP2_BLOCK):
            return _other_encoding(what) if what.startswith("UTF") else what
    if b"\0" in head:
        return _other_encoding("UTF-16") if _alternates(head) else binary(head.index(b"\0"))
    controls = len(head) - len(head.translate(None, _CONTROL))
    return "binary (control characters): give a text" if controls > 0.3 * len(head) else None


def binary(byte: int) -> str:
    """What a file with a NUL at `byte` is."""
    return f"binary (a NUL at byte {byte}): give a text; if it is one, remove them with tr -d '\\000'"


def _other_encoding(name: str) -> str:
    return f"{name}, not UTF-8: convert it with iconv -f {name} -t UTF-8"


def _alternates(head: bytes) -> bool:
    """Whether NULs are on one side of the pairs of bytes: UTF-16 of a language with Latin letters, without a mark."""
    sides = sorted(side.count(0) / max(1, len(side)) for side in (head[::2], head[1::2]))
    return sides[0] < 0.1 and sides[1] > 0.4


# --- what hvd-lm wrote -----------------------------------------------------------------------------------

_FOLDERS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"prepared.json"}), "a prepared text"),
    (frozenset({"checkpoint.json", "weights.safetensors"}), "a checkpoint"),
    (frozenset({"config.yaml", "metrics.jsonl"}), "the folder of a run"),
    (frozenset({"checkpoints", "config.yaml", "tokenizer.json"}), "the folder of a run"),
    (frozenset({"model.json", "tokenizer.json"}), "an export"),
)
"""Names that are in a folder together, and what it then is."""
_FILES = frozenset({"prepared.json", "checkpoint.json", "config.yaml", "metrics.jsonl", "tokenizer.json", "model.json"})


def own_folder(names: Collection[str]) -> str | None:
    """What of hvd-lm's the folder with these names in it is; None if it is not hvd-lm's."""
    return next((what for together, what in _FOLDERS if together <= set(names)), None)


def may_be_own(file: str) -> bool:
    """Whether hvd-lm writes files of this name: nobody's text, where the folder is its own."""
    return file in _FILES or file.endswith(".bin")
