"""What a command refuses: each in one line, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hvd_lm.command_line.commands import main


def assert_one_line_each(cases: Mapping[str, Sequence[str]], out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cases`: words of the line, and the command that is refused; it would write `out`."""
    for words, argv in cases.items():
        assert main(list(argv)) == 2, words
        told = capsys.readouterr().err
        assert words in told
        assert len(told.strip().splitlines()) == 1
        assert not out.exists()
