"""Folders that appear under their name only when they are complete: new ones, empty ones, mounted ones, and none at all."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from hvd_lm.checkpoint.files import new_file, new_folder
from hvd_lm.errors import ConfigError, DataError, HvdLmError


def make(out: Path) -> None:
    with new_folder(out, "header") as staging:
        for name in ("a", "header", "z"):
            (staging / name).write_text(name)


def refusal(kind: type[HvdLmError], out: Path) -> str:
    with pytest.raises(kind) as caught:
        make(out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("before", [None, [], ["lost+found"], [".partial"]])
def test_a_new_folder_and_an_empty_one(tmp_path: Path, before: list[str] | None) -> None:
    out = tmp_path / "out"
    for name in before or []:
        (out / name).mkdir(parents=True)
    if before == []:
        out.mkdir()
    make(out)
    assert names(out) == ["a", "header", *(["lost+found"] if before == ["lost+found"] else []), "z"]
    assert names(tmp_path) == ["out"]


def test_a_mounted_volume_is_filled(tmp_path: Path) -> None:
    """It cannot be replaced, and what is beside it may not be written to: neither is tried. Its header comes last."""
    out = tmp_path / "out"
    out.mkdir()
    renamed = []
    rename = Path.rename

    def busy(path: Path, target: Path) -> Path:
        if target == out:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        renamed.append(target.name)
        return rename(path, target)

    mkdir = Path.mkdir

    def within_the_volume(path: Path, *arguments: int, **options: bool) -> None:
        if not path.is_relative_to(out):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        mkdir(path, *arguments, **options)

    with patch.object(Path, "rename", busy), patch.object(Path, "mkdir", within_the_volume):
        make(out)
    assert renamed[-1] == "header"
    assert names(out) == ["a", "header", "z"]


def test_a_real_mount(tmp_path: Path) -> None:
    """As root in a namespace of its own; a bind mount, as containers have them, does not look like one."""
    out, volume = tmp_path / "out", tmp_path / "volume"
    out.mkdir()
    volume.mkdir()
    code = f"""if True:
        from pathlib import Path
        from hvd_lm.checkpoint.files import new_file, new_folder
        with new_folder(Path({str(out)!r}), "header") as staging:
            (staging / "header").touch()"""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", volume, out, sys.executable, "-c", code]
    can = subprocess.run([*command[:5], "sh", volume, out, "true"], capture_output=True, check=False)
    if can.returncode:
        pytest.skip("no mount namespaces here")
    subprocess.run(command, check=True)
    assert names(volume) == ["header"]


def test_what_cannot_be_moved_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    rename = Path.rename

    def fails_at_the_header(path: Path, target: Path) -> Path:
        if path.name == "header":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    with patch.object(Path, "rename", fails_at_the_header):
        assert (
            refusal(ConfigError, out)
            == f"cannot write to --out {out}: No space left on device; make room there, or name another place"
        )
    assert names(out) == []


@pytest.mark.parametrize("exists", [True, False])
def test_another_process_that_makes_it(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "out"
    staging = out / ".partial" if exists else tmp_path / ".out.partial"
    staging.mkdir(parents=True)
    (staging / "half").touch()
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert refusal(ConfigError, out).startswith(f"another process is making --out {out}: wait for it")
        assert (staging / "half").exists()
    finally:
        os.close(descriptor)
    make(out)
    assert names(out) == ["a", "header", "z"]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    (tmp_path / ".out.partial").symlink_to(tmp_path / "mine")
    assert "cannot write to --out" in refusal(ConfigError, tmp_path / "out")
    assert names(tmp_path / "mine") == ["precious"]


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "out")
    assert refusal(ConfigError, tmp_path / "out").startswith("cannot use --out")


def test_errors_of_reading_are_not_blamed_on_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*/nowhere: No such file or directory"), new_folder(tmp_path / "out", "h"):
        (tmp_path / "nowhere").read_bytes()
    with pytest.raises(ConfigError, match="cannot write to --out"), new_folder(tmp_path / "out", "h") as staging:
        (staging / "x" / "y").write_bytes(b"")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    code = f"""if True:
        import time
        from pathlib import Path
        from hvd_lm.checkpoint.files import new_file, new_folder
        with new_folder(Path({str(tmp_path / "out")!r}), "header") as staging:
            (staging / "half").touch()
            time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while not (tmp_path / ".out.partial" / "half").exists():
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert names(tmp_path) == []


# --- files -----------------------------------------------------------------------------------------------


def test_a_file_is_replaced_when_its_block_ends(tmp_path: Path) -> None:
    """Through a link, with the permissions that it had; nothing else is left."""
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(0o640)
    (tmp_path / "link").symlink_to("old")
    with new_file(tmp_path / "link") as file:
        file.write("new")
        assert (tmp_path / "old").read_text() == "old"
    assert (tmp_path / "old").read_text() == "new"
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["link", "old"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_file_stays_as_it_was_if_its_block_raises(tmp_path: Path, error: type[BaseException]) -> None:
    def half(path: Path) -> None:
        with new_file(path) as file:
            file.write("half")
            raise error

    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        with pytest.raises(error):
            half(tmp_path / name)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_pipe_is_written_to_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with new_file(tmp_path / "pipe") as file:
            file.write("row")
            file.flush()
            assert os.read(reader, 10) == b"row"
    finally:
        os.close(reader)
    assert names(tmp_path) == ["pipe"]


def test_a_full_device_is_told_once() -> None:
    """Closing a file tries once more to write what it could not: that error would hide the first."""

    def fill() -> None:
        with new_file(Path("/dev/full")) as file:
            file.write("row")
            try:
                file.flush()
            except OSError as error:
                raise ValueError("told") from error

    with pytest.raises(ValueError, match="told"):
        fill()
