"""The cache of Horovod's wheel: whole or not at all, and of this user alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hvd_lm.job.build_horovod import HOROVOD_VERSION
from hvd_lm.job.build_tools import BuildError
from hvd_lm.job.wheel_cache import cache_directory, cached_wheel, store

KEY = "0123456789ab"
WANTED = f"{HOROVOD_VERSION}+hvdlm.{KEY}"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's cache is not ours."""
    for name in ("HVD_LM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def wheel_in(folder: Path, content: bytes = b"PK wheel") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"horovod-{WANTED}-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(content)
    return wheel


def test_stored_wheel_is_found(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / KEY
    stored = store(wheel_in(tmp_path / "dist"), entry)
    assert cached_wheel(entry) == stored
    assert stored.parent == entry
    assert stored.read_bytes() == b"PK wheel"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [KEY], "nothing half-written is left"


def test_empty_cache_has_no_wheel(tmp_path: Path) -> None:
    assert cached_wheel(tmp_path / "nowhere") is None


def test_stored_wheel_replaces_the_older_one(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / KEY
    store(wheel_in(tmp_path / "dist", b"old"), entry)
    stored = store(wheel_in(tmp_path / "dist", b"new"), entry)
    assert cached_wheel(entry) == stored
    assert stored.read_bytes() == b"new"


@pytest.mark.parametrize("damage", ["tampered", "truncated", "no checksum", "empty checksum", "second wheel"])
def test_broken_entry_is_told_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    entry = tmp_path / "cache" / KEY
    stored = store(wheel_in(tmp_path / "dist"), entry)
    match damage:
        case "tampered":
            stored.write_bytes(b"PK wheeL")
        case "truncated":
            stored.write_bytes(b"PK")
        case "no checksum":
            (entry / "sha256").unlink()
        case "empty checksum":
            (entry / "sha256").write_text("")
        case "second wheel":
            (entry / "another.whl").write_bytes(b"PK")
    assert cached_wheel(entry) is None
    assert not entry.exists()
    assert str(entry) in capsys.readouterr().out
    assert store(wheel_in(tmp_path / "dist"), entry) == cached_wheel(entry)


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "hvd_lm" / "horovod"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "hvd_lm" / "horovod"
    monkeypatch.setenv("HVD_LM_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own" / "horovod"


def open_to_others(path: Path, _: pytest.MonkeyPatch) -> None:
    path.chmod(0o777)


def of_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.stat_result((*path.stat()[:4], 4711, *path.stat()[5:]))
    whole = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda self: status if self == path else whole(self))


@pytest.mark.parametrize("place", ["", "horovod", f"horovod/{KEY}"])
@pytest.mark.parametrize(
    ("change", "words"), [(open_to_others, "can be written by others"), (of_another_user, "belongs to another user")]
)
def test_a_wheel_that_another_user_could_have_written_is_refused(
    place: str,
    change: Callable[[Path, pytest.MonkeyPatch], None],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HVD_LM_CACHE", str(tmp_path / "cache"))
    entry = cache_directory() / KEY
    assert store(wheel_in(tmp_path / "dist"), entry) == cached_wheel(entry)
    change(tmp_path / "cache" / place, monkeypatch)
    for use in (cached_wheel, partial(store, wheel_in(tmp_path / "dist"))):
        with pytest.raises(BuildError, match=words) as caught:
            use(entry)
        assert str(tmp_path / "cache" / place) in str(caught.value)


def test_the_cache_is_made_for_one_user_whatever_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVD_LM_CACHE", str(tmp_path / "below" / "cache"))
    entry = cache_directory() / KEY
    before = os.umask(0)
    try:
        store(wheel_in(tmp_path / "dist"), entry)
    finally:
        os.umask(before)
    assert cached_wheel(entry)


def test_without_a_home_the_cache_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(BuildError, match="set HVD_LM_CACHE"):
        cache_directory()


@pytest.mark.parametrize("name", ["HVD_LM_CACHE", "XDG_CACHE_HOME"])
def test_empty_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "")
    assert cache_directory() == tmp_path / ".cache" / "hvd_lm" / "horovod"
