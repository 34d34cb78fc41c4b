"""The folder of a run: one run at a time has it, whoever died does not, and nothing of an earlier one is lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import pytest

import hvd_lm
from hvd_lm.errors import ConfigError
from hvd_lm.training import folder
from hvd_lm.training.folder import LOCK, claimed, prepare_folder, writing

HOLD = """
import sys, time
from pathlib import Path
from hvd_lm.training.folder import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_by_another_process(out: Path) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process.pid
        finally:
            process.kill()


def leave_lock(out: Path, age: float, **changes: str) -> Path:
    """As a process on another host leaves it, `age` seconds after its last sign."""
    path = out / LOCK
    holder = replace(folder._this_process(), pid=77, host="elsewhere", **{"kernel": "another", **changes})
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_live_process_is_named_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    words = r"a run in progress \(pid {} on .*, since .*\): wait for its end, or give another"
    with held_by_another_process(tmp_path) as pid:
        with pytest.raises(ConfigError, match=words.format(pid)), claimed(tmp_path):
            pass
        os.kill(pid, signal.SIGKILL)
        with claimed(tmp_path):  # though it may still be ending
            pass
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_a_process_has_a_folder_once(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(ConfigError, match=f"pid {os.getpid()} on "), claimed(tmp_path):
        pass
    with claimed(tmp_path):
        pass


def test_two_runs_into_one_folder_lose_nothing(framework: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with held_by_another_process(tmp_path), pytest.raises(ConfigError, match="a run in progress"):
        hvd_lm.train(hvd_lm.RunConfig(framework=framework, out=tmp_path, steps=1))  # type: ignore[arg-type]
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"
    assert not (tmp_path / "earlier-1").exists()


def test_another_host_is_alive_as_long_as_it_gives_signs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = leave_lock(tmp_path, age=5)
    words = rf"pid 77 on elsewhere.* sign of life was \d+ s ago.*or remove {path}"
    with pytest.raises(ConfigError, match=words), claimed(tmp_path):
        pass
    leave_lock(tmp_path, age=folder.SECONDS_OF_SILENCE + 5)
    with claimed(tmp_path):
        assert f'"pid": {os.getpid()}' in path.read_text()
    assert "pid 77 on elsewhere" in capsys.readouterr().err
    assert not path.exists()


def test_the_same_system_under_another_name_needs_no_sign(tmp_path: Path) -> None:
    """A container that was started anew: the kernel knows that the process before has died."""
    leave_lock(tmp_path, age=1, kernel=folder._this_process().kernel)
    with claimed(tmp_path):
        pass


def test_signs_decide_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(folder, "SECONDS_BETWEEN_SIGNS", 0.02)
    with claimed(tmp_path):
        long_ago = time.time() - 1000
        os.utime(tmp_path / LOCK, (long_ago, long_ago))
        time.sleep(0.2)
        with pytest.raises(ConfigError, match="a run in progress"), claimed(tmp_path):
            pass
    with claimed(tmp_path):
        pass


def test_a_damaged_lock_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("half a li")
    with claimed(tmp_path):
        pass


def test_the_first_free_number_is_taken(tmp_path: Path) -> None:
    """Counting them would give a name that is taken, once one was removed."""
    (tmp_path / "earlier-2").mkdir()
    (tmp_path / "earlier-3").symlink_to("nowhere")
    for name, content in (("earlier-1", "one"), ("earlier-4", "two")):
        (tmp_path / "metrics.jsonl").write_text(content)
        prepare_folder(tmp_path)
        assert (tmp_path / name / "metrics.jsonl").read_text() == content


@pytest.mark.parametrize(("number", "advice"), [(errno.ENOSPC, "make room there"), (errno.EACCES, "change the permissions")])
def test_what_cannot_be_written_is_one_line(number: int, advice: str) -> None:
    words = f"cannot write to --out run: {os.strerror(number)}; .*{advice}"
    with pytest.raises(ConfigError, match=words), writing(Path("run")):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2", "RANK": "0"}, {"RANK": "1"}])
def test_a_launcher_that_horovod_does_not_know_is_refused(
    framework: str, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes would each train alone, into one folder."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="none of Horovod's launchers started it: start them with horovodrun"):
        hvd_lm.train(hvd_lm.RunConfig(framework=framework, out=tmp_path, steps=1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="horovodrun"):
        hvd_lm.adapter(framework)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_one_process_of_another_launcher_is_alone(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert hvd_lm.adapter(framework, threads=1).job.topology.size == 1
