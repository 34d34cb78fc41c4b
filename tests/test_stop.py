"""A run that is asked to stop ends its step, writes a checkpoint, leaves with code 5, and goes on as if it never had."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import launcher
import pools
import pytest
from conftest import INSTALLED

from hvd_lm import checkpoint as checkpoints
from hvd_lm.data.corpus import embedded_corpus
from hvd_lm.job.stop import SIGNALS, Stop

RECIPE = [*launcher.SMALL, "--batch-size", "4", "--backward-passes-per-step", "2", "--dropout", "0.2", "--threads", "1"]


def assert_goes_on(run: Path, ranks: int, flags: list[str]) -> None:
    """The checkpoint of the last step that was told is there, and what follows it is what follows without a stop."""
    stopped = checkpoints.load(run).step
    assert [row["step"] for row in launcher.metrics(run)] == list(range(1, stopped + 1))
    steps = ["--steps", str(stopped + 5)]
    pools.hvd_lm(ranks, "train", "--out", run, *flags, *steps, "--resume", "auto")
    whole = run.with_name("whole")
    pools.hvd_lm(ranks, "train", "--out", whole, *flags, *steps)
    assert launcher.losses(run) == launcher.losses(whole)


@pytest.mark.ranks
def test_a_signal_to_one_rank_stops_all(framework: str, tmp_path: Path) -> None:
    flags = ["--framework", framework, *RECIPE, "--deterministic"]
    with launcher.training(2, tmp_path / "run", *flags, after_step=3) as run:
        run.ranks[0].send_signal(signal.SIGUSR1)
        ended = run.ended()
    assert ended.code == 5
    assert len([line for line in ended.output.splitlines() if "stopped after step" in line]) == 1
    assert "by SIGUSR1 (rank " in ended.output
    assert_goes_on(tmp_path / "run", 2, flags)


@pytest.mark.ranks
@pytest.mark.parametrize(("controller", "number"), [("gloo", signal.SIGINT), ("mpi", signal.SIGUSR1)])
def test_a_launcher_passes_it_on(controller: str, number: signal.Signals, tmp_path: Path) -> None:
    flags = ["--framework", INSTALLED[0], *RECIPE]
    with launcher.training(2, tmp_path / "run", *flags, after_step=3, controller=controller) as run:
        launched_by = {"gloo": run.job.pid, "mpi": run.ranks[0].ppid()}[controller]  # mpirun is the parent of its ranks
        os.kill(launched_by, number)
        ended = run.ended()
    assert ended.code == 5
    assert "stopped after step" in ended.output
    assert checkpoints.load(tmp_path / "run").step == len(launcher.metrics(tmp_path / "run"))


@pytest.mark.ranks
def test_ctrl_c_once_stops_and_twice_ends(tmp_path: Path) -> None:
    flags = ["--framework", INSTALLED[0], *RECIPE]
    with launcher.training(1, tmp_path / "run", *flags, after_step=3) as run:
        run.job.send_signal(signal.SIGINT)
        ended = run.ended()
    assert ended.code == 5
    stopped = checkpoints.load(tmp_path / "run").step
    assert f"hvd-lm: stopped after step {stopped} by SIGINT: go on with --resume auto" in ended.output
    slow = ["--backward-passes-per-step", "1000000"]
    with launcher.training(1, tmp_path / "slow", *flags, *slow, after_step=0) as run:
        time.sleep(2)
        run.job.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.job.poll() is None, "a step takes its time"
        run.job.send_signal(signal.SIGINT)
        assert run.ended(timeout=5).code == -signal.SIGINT


@pytest.mark.ranks
def test_a_warning_while_a_run_is_set_up_is_heard(tmp_path: Path) -> None:
    """It ends after its first step."""
    text = tmp_path / "text"  # a pipe: the run waits for its text
    os.mkfifo(text)
    out = tmp_path / "run"
    command = ["hvd-lm", "train", "--framework", INSTALLED[0], *RECIPE, *launcher.ENDLESS, "--data", text, "--out", out]
    with subprocess.Popen(command, env=launcher.with_scripts(), stderr=subprocess.PIPE, text=True) as run:
        with text.open("w") as file:  # it reads
            run.send_signal(signal.SIGUSR1)
            file.write(embedded_corpus())
        _, told = run.communicate(timeout=60)
    assert run.returncode == 5
    assert "stopped after step 1 by SIGUSR1" in told


@pytest.mark.ranks
def test_the_clock_stops_a_run(tmp_path: Path) -> None:
    flags = ["--framework", INSTALLED[0], *RECIPE, *launcher.ENDLESS]
    with pytest.raises(AssertionError, match=r"stopped after step \d+ by --max-hours 0.0005 \(rank [01] on"):
        pools.hvd_lm(2, "train", "--out", tmp_path / "run", *flags, "--max-hours", "0.0005")
    assert checkpoints.load(tmp_path / "run").step == len(launcher.metrics(tmp_path / "run"))


# --- what one process hears ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_reason(number: signal.Signals) -> None:
    stop, before = Stop(), signal.getsignal(number)
    assert stop.reason is None
    with stop.signals_heard(*SIGNALS):
        os.kill(os.getpid(), number)
        stop.ask("something later")
    assert stop.reason == number.name
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_ignored() -> None:
    """As after nohup, or in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.signals_heard(*SIGNALS):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_hears_nothing() -> None:
    def hear() -> None:
        with Stop().signals_heard(*SIGNALS):
            heard.append(signal.getsignal(signal.SIGTERM))

    heard: list[object] = []
    thread = threading.Thread(target=hear)
    thread.start()
    thread.join()
    assert heard == [signal.getsignal(signal.SIGTERM)]


def test_the_clock_is_a_reason() -> None:
    assert Stop(hours=1).reason is None
    assert Stop(hours=1e-12).reason == "--max-hours 1e-12"
