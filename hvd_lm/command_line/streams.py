"""Standard streams that may be closed, full, a pipe that nobody reads, or of an encoding that lacks a character.

Standard output carries results: one that cannot be written is an error. Standard error carries what people may like to know: the
work goes on without it. Where a reader has gone, the command ends as silently as SIGPIPE would end it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

from hvd_lm.errors import HvdLmError, why


class StreamError(HvdLmError):
    """Standard output cannot be written."""


class ReaderGoneError(StreamError):
    """Whatever read a stream has ended, as ``head`` does; nobody is left to be told."""

    exit_code = 141


class _Stream(io.FileIO):
    """Fails once at most: what is written after that is dropped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._failed = False

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        if not self._failed:
            try:
                return super().write(data)
            except OSError as error:
                self._failed = True
                self._fail(error)
        return memoryview(data).nbytes

    def _fail(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            raise ReaderGoneError from error


class _Output(_Stream):
    def _fail(self, error: OSError) -> None:
        super()._fail(error)
        raise StreamError(f"cannot write to standard output: {why(error)}") from error


def make_ready() -> None:
    """Give this process standard streams that fail as errors of ours. Streams that a caller has put in their place stay."""
    _keep_closed()
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Output(1), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Stream(2), sys.stderr)


def _keep_closed() -> None:
    """A stream that is closed must not become the first file that is opened: what is read from it ends, and no byte is written."""
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(descriptor)


def _text(stream: _Stream, before: TextIO | None) -> TextIO:
    """`stream` in the encoding of the one `before`; characters that it lacks become escapes."""
    at_once = before is not None and before.isatty()
    if isinstance(before, io.TextIOWrapper):
        at_once = before.line_buffering or before.write_through
    encoding = before.encoding if before else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(stream), encoding=encoding, errors="backslashreplace", line_buffering=at_once)
