"""A plain text is worked out once on a host: the other ranks map what the first one has made."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hvd_lm.config import DataConfig
from hvd_lm.data import once
from hvd_lm.data.once import Made, made_once
from hvd_lm.data.texts import read_texts, read_tokens
from hvd_lm.data.walk import TextFile

RANKS = 3
MADE = Made({"tokens": np.arange(1000, dtype=np.uint16), "none": np.empty(0, np.uint8)}, {"counts": [1, 2]})


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With so many ranks, an empty folder for temporary files, and no text too short to share."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(once, "SHARED_FROM", 1)
    for name, value in {"RANK": 0, "SIZE": RANKS, "LOCAL_RANK": 0, "LOCAL_SIZE": RANKS}.items():
        monkeypatch.setenv(f"HOROVOD_{name}", str(value))
    return tmp_path / "tmp" / f"hvd_lm-{os.getuid()}"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("a text of some words , and of some more\n" * 400)
    return path


class Counted:
    """Makes MADE, and knows how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Made:
        self.count += 1
        return MADE


def by_all_ranks(make: Callable[[], Made], file: Path, of_settings: object = None) -> list[Made]:
    with ThreadPoolExecutor(RANKS) as ranks:
        return list(ranks.map(lambda _: made_once([TextFile(file)], of_settings, make), range(RANKS)))


def assert_is_made(found: Made) -> None:
    assert found.words == MADE.words
    for name, array in MADE.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_one_makes_it_for_all(text: Path, host: Path) -> None:
    make = Counted()
    for found in by_all_ranks(make, text):
        assert_is_made(found)
        assert isinstance(found.arrays["tokens"], np.memmap)
    assert make.count == 1
    assert list(host.iterdir()) == []


def test_another_text_and_other_settings_are_made_anew(text: Path) -> None:
    make = Counted()
    by_all_ranks(make, text)
    by_all_ranks(make, text, "other settings")
    text.write_text("another text")
    by_all_ranks(make, text)
    assert make.count == 3


def test_a_short_text_is_not_shared(text: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "SHARED_FROM", 1 << 24)
    make = Counted()
    by_all_ranks(make, text)
    assert make.count == RANKS
    assert not host.exists() or list(host.iterdir()) == []


def test_what_one_raises_the_next_one_finds_out_for_itself(text: Path) -> None:
    def fail() -> Made:
        raise FileNotFoundError("of a text")

    with pytest.raises(FileNotFoundError, match="of a text"):
        by_all_ranks(fail, text)
    assert_is_made(by_all_ranks(Counted(), text)[0])


@pytest.mark.parametrize("fault", ["open to others", "a file", "full", "damaged"])
def test_without_a_place_in_common_each_makes_its_own(fault: str, text: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def damaged(path: Path, _: object) -> None:
        path.write_bytes(b"not an array")

    if fault == "open to others":
        host.mkdir()
        host.chmod(0o777)
    elif fault == "a file":
        host.write_text("")
    else:
        monkeypatch.setattr(np, "save", full if fault == "full" else damaged)
    make = Counted()
    for found in by_all_ranks(make, text):
        assert_is_made(found)
    assert make.count == RANKS


def test_a_rank_that_is_killed_leaves_the_work_to_the_next(text: Path, host: Path) -> None:
    killed = f"""
import os, signal, tempfile
from pathlib import Path
from hvd_lm.data import once
from hvd_lm.data.walk import TextFile
once.SHARED_FROM = 1
tempfile.tempdir = {str(host.parent)!r}
once.made_once([TextFile(Path({str(text)!r}))], None, lambda: os.kill(os.getpid(), signal.SIGKILL))
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -9
    assert len(list(host.iterdir())) == 1
    make = Counted()
    by_all_ranks(make, text)
    assert make.count == 1
    assert list(host.iterdir()) == []


def test_what_was_left_over_is_removed(text: Path, host: Path) -> None:
    left = host / "left"
    left.mkdir(parents=True)
    host.chmod(0o700)
    os.utime(left, (0, 0))
    by_all_ranks(Counted(), text)
    assert not left.exists()


@pytest.mark.parametrize("cut", ["lines", "tokens"])
def test_ranks_read_the_texts_that_one_process_reads(cut: str, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(data=(text,), validation_share=0.2, validation_cut=cut)  # type: ignore[arg-type]
    shared = [read_texts(config, None) for _ in range(RANKS)]
    counts = [read_tokens((text,), shared[0].tokenizer)[1] for _ in range(RANKS)]
    monkeypatch.setenv("HOROVOD_LOCAL_SIZE", "1")
    own = read_texts(config, None)
    assert {texts.fingerprint for texts in shared} == {own.fingerprint}
    assert isinstance(shared[0].training, np.memmap)
    assert not isinstance(own.training, np.memmap)
    assert counts == [read_tokens((text,), own.tokenizer)[1]] * RANKS
