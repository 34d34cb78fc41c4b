"""Reading .zst files to their end: all frames, windows of any length, and an error where one was cut off.

The reader of the zstandard library stops behind the first frame, and takes the end of the file for the end of a frame.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

_LONGEST_WINDOW = 1 << 31
"""Bytes that zstd may look back: what ``zstd --long=31`` writes needs them all."""
_PIECE = 1 << 13
"""Compressed bytes that are taken at once; a text of one letter becomes some thousand times as many."""


class _Frames(io.RawIOBase):
    """The content of all frames of a file, one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW)
        self._frame = self._decompressor.decompressobj()
        self._in_frame = False
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises EOFError if the file ends within a frame, ZstdError if it is damaged."""
        while not self._content and (piece := self._next_piece()):
            self._content = memoryview(self._frame.decompress(piece))
            self._in_frame = not self._frame.eof
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size

    def _next_piece(self) -> bytes:
        rest = b""
        if self._frame.eof:
            rest = self._frame.unused_data
            self._frame = self._decompressor.decompressobj()
        piece = rest or self._file.read(_PIECE)
        if not piece and self._in_frame:
            raise EOFError("it ends within a frame")
        return piece

    def close(self) -> None:
        self._file.close()
        super().close()


def open_zstandard(path: Path) -> BinaryIO:
    """The content of a .zst file. Raises OSError; reading raises ZstdError or EOFError for a damaged one."""
    return io.BufferedReader(_Frames(path.open("rb")))
