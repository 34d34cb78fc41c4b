"""Prompts that a person types, on a terminal and through a pipe."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import launcher
import pytest
from test_generation import save_random_model

import hvd_lm

SECONDS = 100.0
LENGTH = 7


def command(folder: Path, *flags: str) -> list[str]:
    return ["hvd-lm", "generate", "--checkpoint", str(folder), "--interactive", "--threads", "1", "--length", str(LENGTH), *flags]


def follows(folder: Path, text: str, seed: int, framework: str = "torch") -> str:
    drawn = hvd_lm.SamplingConfig(seed=seed)
    return text + "".join(hvd_lm.generate(folder, text, length=LENGTH, sampling=drawn, framework=framework))  # type: ignore[arg-type]


def test_lines_of_a_pipe(framework: str, tmp_path: Path) -> None:
    """Each is a prompt, and an empty one goes on with the text so far; the n-th text has a seed of its own."""
    save_random_model(tmp_path)
    words = command(tmp_path, "--framework", framework, "--seed", "5")
    ended = subprocess.run(
        words, env=launcher.with_scripts(), input="the cat\n\nthe\n", capture_output=True, text=True, check=True, timeout=SECONDS
    )
    first = follows(tmp_path, "the cat", 5, framework)
    expected = [first, follows(tmp_path, first, 6, framework), follows(tmp_path, "the", 7, framework)]
    assert ended.stdout == "".join(f"{text}\n" for text in expected)
    assert ended.stderr == ""


@pytest.mark.parametrize("end", ["nothing", "a byte that is no text"])
def test_an_input_that_ends(end: str, tmp_path: Path) -> None:
    save_random_model(tmp_path)
    given = b"" if end == "nothing" else b"the \xff\n"
    ended = subprocess.run(
        command(tmp_path), env=launcher.with_scripts(), input=given, capture_output=True, check=False, timeout=SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout == b"") == (end == "nothing")


def test_a_terminal(tmp_path: Path) -> None:
    """It asks; Ctrl-C ends a text, and the conversation where none is written."""
    save_random_model(tmp_path)
    ours, theirs = pty.openpty()
    seen = ""

    def wait_for(asked: int) -> None:
        nonlocal seen
        deadline = time.monotonic() + SECONDS
        while seen.count("> ") < asked:
            assert time.monotonic() < deadline, seen
            seen += os.read(ours, 1 << 16).decode(errors="replace")

    words = [*command(tmp_path), "--length", "1000000"]
    with subprocess.Popen(
        words, env=launcher.with_scripts(TERM="dumb"), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        wait_for(1)
        os.write(ours, b"the cat\n")
        while len(seen) < 200:
            seen += os.read(ours, 1 << 16).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        wait_for(2)
        assert " ..." in seen
        os.write(ours, b"\x04")
        assert process.wait(SECONDS) == 0
    os.close(ours)
