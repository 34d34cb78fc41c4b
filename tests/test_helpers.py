"""Ranks that share the work of `hvd-lm prepare`: the same bytes as of one process, or one line."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import launcher
import pytest
from conftest import hide

from hvd_lm.data import corpus
from hvd_lm.data.corpus import embedded_corpus
from hvd_lm.data.prepare import PrepareConfig, prepare
from hvd_lm.data.tokenizer import KINDS, TokenizerKind
from hvd_lm.job import helpers
from hvd_lm.job.helpers import in_order

TEXT = "".join(f"{number}\n{embedded_corpus()}é" for number in range(5))
"""Three blocks."""


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "text.txt"


# --- in one process --------------------------------------------------------------------------------------


def test_results_come_in_order_and_this_process_does_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    done: dict[int, str] = {}

    def square(item: int) -> int:
        done[item] = threading.current_thread().name
        return item * item

    monkeypatch.setattr(helpers, "_taken", square, raising=False)
    with ThreadPoolExecutor(1, thread_name_prefix="helper") as executor:
        assert list(in_order(executor, 1, square, range(500))) == [item * item for item in range(500)]
    assert {name.split("_")[0] for name in done.values()} == {"helper", "MainThread"}


def test_what_is_read_ahead_of_a_slow_helper_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    read = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            if item == 40:
                go_on.set()
            yield item

    def wait(item: int) -> int:
        go_on.wait(0.05)
        return item

    monkeypatch.setattr(helpers, "_taken", wait, raising=False)
    with ThreadPoolExecutor(1) as executor:
        results = in_order(executor, 1, lambda item: item, items())
        assert next(results) == 0
        assert len(read) < 40
        assert list(results) == list(range(1, 100))


@pytest.mark.parametrize("kind", KINDS)
def test_work_that_travels_gives_the_same_bytes(kind: TokenizerKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text goes to other processes, and what they made of it comes back, pickled."""
    monkeypatch.setattr(corpus, "BLOCK", 1 << 12)
    text = tmp_path / "text.txt"
    text.write_text(TEXT[:40_000] + "é", encoding="utf-8")

    def travelling(work: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
        work = pickle.loads(pickle.dumps(work))
        return (pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(item))))) for item in items)

    alone, spread = (
        PrepareConfig((text,), text.parent / name, tokenizer=kind, vocabulary_size=300 if kind == "bpe" else None)
        for name in ("alone", "spread")
    )
    prepare(alone)
    prepare(spread, travelling)
    assert files(alone.out) == files(spread.out)


# --- as a job --------------------------------------------------------------------------------------------


@pytest.fixture
def mpirun() -> list[str]:
    if not shutil.which("mpirun"):
        pytest.skip("there is no mpirun")
    pytest.importorskip("mpi4py")
    return ["mpirun", "--oversubscribe", "-np", "2", "hvd-lm", "prepare"]


@pytest.mark.ranks
def test_two_ranks_write_the_bytes_of_one(mpirun: list[str], text: Path) -> None:
    ended = launcher.run(*mpirun, text, "--out", text.parent / "two").expect_success()
    assert ended.output.count("word tokenizer, vocabulary") == 1
    prepare(PrepareConfig((text,), text.parent / "one"))
    assert files(text.parent / "two") == files(text.parent / "one")


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("mpi4py", "the ranks cannot share the work, as mpi4py is not installed: pip install 'hvd_lm[mpi]'"),
        ("settings", "1 of 2 ranks have another --test-share than rank 0 (0.1 instead of None"),
        ("text", "text.txt is not UTF-8 text (byte"),
    ],
)
def test_a_job_that_cannot_be_is_one_line(fault: str, words: str, mpirun: list[str], text: Path) -> None:
    flags: list[str | Path] = [text, "--out", text.parent / "out"]
    environment = {}
    if fault == "mpi4py":
        hide("mpi4py", text.parent)
        environment = {"PYTHONPATH": os.pathsep.join((str(text.parent), os.environ.get("PYTHONPATH", "")))}
    if fault == "settings":
        mpirun[mpirun.index("2")] = "1"
        flags += [":", *mpirun[2:], *flags, "--test-share", "0.1"]
    if fault == "text":
        text.write_bytes(TEXT.encode() + b"\xff\n")
    ended = launcher.run(*mpirun, *flags, timeout=60, **environment)
    assert ended.code == 2
    assert [words in line for line in ended.output.splitlines() if "hvd-lm: " in line] == [True], ended.output
    assert not (text.parent / "out").exists()
    assert "Traceback" not in ended.output
