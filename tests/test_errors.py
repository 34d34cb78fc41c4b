"""What the operating system refuses is told in one line: of what, why, and what to do; anything else is a bug."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from hvd_lm.command_line import commands
from hvd_lm.command_line.commands import Command, main
from hvd_lm.errors import why


def raised(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command that raises `error`."""

    def run(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(commands, "COMMANDS", {"fail": Command("fails", run)})
    return main(["fail"])


def refusal(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refusal(errno.EACCES, "a/b"), "Permission denied (a/b); this user may not: change the permissions, or name another place"),
        (refusal(errno.ENOSPC), "No space left on device; make room there, or name another place"),
        (refusal(errno.EROFS, "a"), "Read-only file system (a); nothing can be written on that file system: name another place"),
        (refusal(errno.ENAMETOOLONG, "a"), "File name too long (a); choose a shorter name"),
        (
            refusal(errno.EDQUOT, "a"),
            "Disk quota exceeded (a); this user's quota is used up: remove files there, or name another place",
        ),
        (refusal(errno.ENXIO, "a"), "No such device or address (a)"),
        (OSError("the disk is gone"), "the disk is gone"),
        (OSError(), "OSError"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "No space left on device; make room there, or name another place",
        ),
        (SafetensorError("header too large"), "header too large"),
    ],
    ids=str,
)
def test_a_refusal_in_words(error: Exception, words: str) -> None:
    assert why(error) == words


def test_a_path_that_is_named_already_is_not_named_twice() -> None:
    assert why(refusal(errno.ENOENT, "a/b"), Path("a/b")) == "No such file or directory; check the name"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.ENAMETOOLONG])
def test_a_refusal_that_no_command_expects_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raised(refusal(number, "some/path"), monkeypatch) == 2
    assert capsys.readouterr().err == f"hvd-lm: error: {why(refusal(number, 'some/path'))}\n"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000,)"), " (what was asked for: 7.28 TiB)"),
        (RuntimeError("can't allocate memory: you tried to allocate 4000 bytes. Error"), " (what was asked for: 4000 bytes)"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"), " (what was asked for: 20.00 GiB)"),
        (RuntimeError("std::bad_alloc"), ""),
    ],
    ids=str,
)  # fmt: skip
def test_memory_that_is_used_up(
    error: Exception, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raised(error, monkeypatch) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hvd-lm: error: the memory is used up{asked}: take a smaller batch")


@pytest.mark.parametrize("error", [OSError("no number"), refusal(errno.ECHILD), KeyError("x")], ids=str)
def test_anything_else_is_a_bug(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert raised(error, monkeypatch) == 1
    assert "this is a bug in hvd_lm" in capsys.readouterr().err


TAKES_A_PATH = [
    ["evaluate", "--checkpoint"],
    ["score", "--checkpoint"],
    ["generate", "--checkpoint"],
    ["export", "--format", "torch", "--out", "x", "--checkpoint"],
    ["train", "--resume"],
    ["train", "--config"],
    ["report"],
]


@pytest.mark.parametrize("command", TAKES_A_PATH, ids=" ".join)
def test_a_path_that_cannot_be_asked_about(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is too long is refused to root too, as one behind a folder that may not be entered is to others."""
    monkeypatch.chdir(tmp_path)
    assert main([*command, str(tmp_path / ("n" * 300))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hvd-lm: error: cannot read ")
    assert "File name too long" in line
    assert line.endswith("; choose a shorter name")


def test_names_with_line_breaks_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "a\nb\x1b[31m")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a\\nb\\x1b[31m" in line
