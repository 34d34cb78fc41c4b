"""Standard streams: a reader that has gone ends a command silently, a stream that is full or closed ends it in one line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import launcher
import pytest
from test_generation import save_random_model

HELP = ["hvd-lm", "--help"]
FLAGS = ["hvd-lm", "train", "--help"]
REFUSED = ["hvd-lm", "report", "nowhere"]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Of a run that a report can be drawn of."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 8, "seconds": 1, "loss": 2.5}\n')
    return folder


def shell(script: str, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `command` as the "$@" of a bash script."""
    words = ["bash", "-c", script, "bash", *map(str, command)]
    return subprocess.run(words, env=launcher.with_scripts(**environment), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", [HELP, FLAGS], ids=["help", "flags"])
def test_a_reader_that_has_gone_ends_a_command_silently(command: list[str]) -> None:
    ended = shell('"$@" | true; exit ${PIPESTATUS[0]}', *command)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_text_that_nobody_reads_on_ends(framework: str, tmp_path: Path) -> None:
    """In the middle of a text without an end."""
    command = ["hvd-lm", "generate", "--checkpoint", save_random_model(tmp_path), "--length", "100000000", "--framework", framework]
    ended = shell('"$@" | head -c 10; exit ${PIPESTATUS[0]}', *command)
    assert (ended.returncode, ended.stderr) == (141, "")
    assert len(ended.stdout.encode()) == 10


@pytest.mark.parametrize(
    ("place", "words"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")], ids=["full", "closed"]
)
def test_a_result_that_cannot_be_told_is_an_error_of_one_line(place: str, words: str, run_folder: Path) -> None:
    for command in (HELP, FLAGS, ["hvd-lm", "report", run_folder, "--out", run_folder.parent / "out"]):
        ended = shell(f'"$@" {place}', *command)
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"hvd-lm: error: cannot write to standard output: {words}")


@pytest.mark.parametrize("place", ["2>/dev/full", "2>&-"])
def test_what_cannot_be_said_leaves_the_exit_code(place: str) -> None:
    ended = shell(f'"$@" {place}', *REFUSED)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")


def test_an_error_that_nobody_reads_leaves_the_exit_code() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        ended = subprocess.run(REFUSED, env=launcher.with_scripts(), stdout=subprocess.PIPE, stderr=gone, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, b"")


def test_closed_streams_are_no_files_that_a_run_writes(run_folder: Path) -> None:
    """The first file that is opened gets the number of a stream that is closed."""
    ended = shell('"$@" <&- >&- 2>&-', "hvd-lm", "report", run_folder, "--out", run_folder.parent / "out")
    assert ended.returncode == 2
    page = (run_folder.parent / "out" / "index.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "report in" not in page
    assert page.endswith("</html>")
    assert (run_folder / "metrics.jsonl").read_text().startswith('{"step": 1')


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-8"}, {"LC_ALL": "C"}], ids=str)
def test_characters_that_an_encoding_lacks_become_escapes(environment: dict[str, str], run_folder: Path) -> None:
    """A byte that is no UTF-8 in a name is a character that no encoding has."""
    out = run_folder.parent / "ü \udcff"
    ended = shell('"$@"', "hvd-lm", "report", run_folder, "--out", out, **environment)
    escaped = str(out).encode(environment.get("PYTHONIOENCODING", "utf-8"), "backslashreplace").decode()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"report in {escaped}/index.html\n"


@pytest.mark.ranks
def test_progress_that_nobody_reads_ends_a_training_silently(tmp_path: Path) -> None:
    command = ["hvd-lm", "train", *launcher.SMALL, "--steps", "1000000", "--threads", "1", "--out", tmp_path / "run"]
    ended = shell('"$@" 2>&1 | head -n 1; exit ${PIPESTATUS[0]}', *command)
    assert ended.returncode == 141
    assert len(ended.stdout.splitlines()) == 1


@pytest.mark.ranks
def test_a_training_goes_on_without_anywhere_to_tell(tmp_path: Path) -> None:
    command = ["hvd-lm", "train", *launcher.SMALL, "--steps", "2", "--threads", "1", "--out", tmp_path / "run"]
    ended = shell('"$@" 2>&-', *command)
    assert ended.returncode == 0
    assert ended.stdout.startswith("validation perplexity")
    assert len(launcher.metrics(tmp_path / "run")) == 2
