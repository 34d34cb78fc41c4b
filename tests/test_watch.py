"""A rank that waits in vain ends; one that was stopped itself, or gives signs, does not. And ranks meet before Gloo would abort."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hvd_lm.errors import LostWorkerError
from hvd_lm.job import watch
from hvd_lm.job.meeting import await_ranks
from hvd_lm.job.watch import Watch

WAITS = """
import sys, time
from hvd_lm.job import watch
watch._SECONDS_BETWEEN_LOOKS = 0.05
its = watch.Watch(patience=0.5)
with its.kept():
    print("begun", flush=True)
    for _ in range(int(sys.argv[1])):
        time.sleep(0.1)
        its.sign()
    print("signs end", flush=True)
    time.sleep(float(sys.argv[2]))
time.sleep(1)
print("left", flush=True)
"""


def waiting(signs: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WAITS, str(signs), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_who_waits_in_vain_ends_with_one_line() -> None:
    with waiting(signs=10, seconds=60) as process:
        out, error = process.communicate(timeout=30)
    assert process.returncode == LostWorkerError.exit_code
    assert "signs end" in out
    (line,) = error.splitlines()
    assert "hvd-lm: error: rank 0 has waited for the others for 0.5 s (--stall-shutdown-seconds)" in line


def test_who_goes_on_or_has_left_does_not() -> None:
    with waiting(signs=2, seconds=0) as process:
        out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert out.endswith("left\n")


def test_who_was_stopped_has_not_waited() -> None:
    """A scheduler stops whole jobs, and lets them go on later."""
    with waiting(signs=20, seconds=0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_blocks_within_blocks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_SECONDS_BETWEEN_LOOKS", 0.01)
    its = Watch(patience=60)
    with its.kept():
        with its.kept():
            (found,) = watches()
        assert watches() == [found]
    found.join(5)
    with Watch(patience=0).kept():
        assert watches() == []


def watches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "watch"]


# --- the meeting -----------------------------------------------------------------------------------------


class Store(BaseHTTPRequestHandler):
    """As the launcher's."""

    kept: set[str]

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.kept.add(self.path)
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(200 if self.path in self.kept else 404)

    def _answer(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """What ranks of three have left in it; this is rank 1."""
    for name in [name for name in os.environ if name.startswith("HOROVOD_")]:
        monkeypatch.delenv(name)
    Store.kept = set()
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address, port = server.server_address[:2]
        variables = {"GLOO_RENDEZVOUS_ADDR": str(address), "GLOO_RENDEZVOUS_PORT": str(port), "RANK": "1", "SIZE": "3"}
        for name, value in variables.items():
            monkeypatch.setenv(f"HOROVOD_{name}", value)
        yield Store.kept
        server.shutdown()


def test_ranks_wait_for_each_other(store: set[str]) -> None:
    store.add("/hvd_lm.meeting/0")
    threading.Timer(0.5, store.add, ["/hvd_lm.meeting/2"]).start()
    began = time.monotonic()
    await_ranks(patience=20)
    assert 0.3 < time.monotonic() - began < 10
    assert "/hvd_lm.meeting/1" in store


@pytest.mark.usefixtures("store")
def test_who_does_not_come_is_named() -> None:
    with pytest.raises(LostWorkerError, match=r"rank\(s\) 0, 2 did not come to the job within 0.2 s \(--stall-shutdown-seconds\)"):
        await_ranks(patience=0.2)


def test_a_launcher_that_is_gone_is_no_traceback(store: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_PORT", "9")
    with pytest.raises(LostWorkerError, match=r"the launcher does not answer at 127.0.0.1:9"):
        await_ranks(patience=5)
    monkeypatch.delenv("HOROVOD_GLOO_RENDEZVOUS_PORT")
    await_ranks(patience=5)
    assert not store
