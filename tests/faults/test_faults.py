"""The table of faults (table.py), row by row, in both frameworks: recovery or one clear line, nothing hangs, nothing is left.

What goes on afterwards must be, bit for bit, what a run would have been that nothing happened to.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import launcher
import numpy as np
import places
import pools
import psutil
import pytest
from faulty import FILLER
from marked import Met, faulty, started
from table import GRACE, PATIENCE, ROWS, Row, rows

from hvd_lm import checkpoint as checkpoints
from hvd_lm.checkpoint.format import FOLDER

pytestmark = pytest.mark.faults

TEXT = Path(launcher.__file__).parent / "assets" / "format1" / "text.txt"
MODEL = ["--vocabulary-size", "40", "--embedding-size", "6", "--hidden-size", "8", "--dropout", "0.2"]
RECIPE = ["--batch-size", "2", "--sequence-length", "8", "--backward-passes-per-step", "2", "--deterministic", "--threads", "1"]
RHYTHM = ["--checkpoint-every", "3", "--validation-every", "4", "--keep-checkpoints", "4"]
STEPS = 10
Trained = Callable[[str, int], Path]


def train(framework: str, out: Path, *flags: str | Path, steps: int = STEPS) -> list[str]:
    """The arguments of hvd-lm."""
    words = ["train", "--framework", framework, "--data", TEXT, "--out", out, *MODEL, *RECIPE, *RHYTHM, "--steps", steps, *flags]
    return [str(word) for word in words]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Runs of two ranks that nothing happened to, of so many steps."""
    folder = tmp_path_factory.mktemp("trained")

    def make(framework: str, steps: int) -> Path:
        out = folder / f"{framework}-{steps}"
        if not out.exists():
            pools.hvd_lm(2, *train(framework, out, steps=steps))
        return out

    return make


def check_end(met: Met, row: Row) -> None:
    """It has ended as the row says, and in time."""
    assert met.code == row.code if row.code is not None else met.code != 0, met.output
    found = [line for line in met.output.splitlines() if row.says and re.search(row.says, line)]
    assert bool(found) == bool(row.says), met.output
    assert len(met.lines) <= 1 or row.code == 0, met.output
    assert "Traceback" not in met.output
    assert met.seconds < row.within, f"{met.seconds:.1f} s\n{met.output}"
    print(f"MEASURED {met.seconds:.1f}")


def go_on(framework: str, out: Path) -> None:
    """With the same command, in ranks that are there already."""
    pools.hvd_lm(2, *train(framework, out, "--resume", "auto"))


def check_same(out: Path, whole: Path) -> None:
    """Losses, validations, weights and moments, bit for bit."""
    ours, theirs = launcher.metrics(out), launcher.metrics(whole)
    names = ("step", "loss", "tokens", "gradient_norm")
    assert [[row[name] for name in names] for row in ours] == [[row[name] for name in names] for row in theirs]
    ended, undisturbed = checkpoints.load(out), checkpoints.load(whole)
    assert ended.step == undisturbed.step == STEPS
    assert ended.progress.validation_loss == undisturbed.progress.validation_loss is not None
    of_both = ((of.weights, of.optimizer_state.moments) for of in (ended, undisturbed))
    for ours_of, theirs_of in zip(*of_both, strict=True):
        assert ours_of.keys() == theirs_of.keys()
        assert all(np.array_equal(ours_of[name], theirs_of[name]) for name in ours_of)


def check_then(row: Row, framework: str, out: Path, trained: Trained) -> None:
    begins = row.then == "begins"
    if begins or row.then == "resumed":
        assert checkpoints.exists(out) != begins
        go_on(framework, out)
    check_same(out, trained(framework, STEPS))


TESTED: set[str] = set()
"""Kinds of rows that a test here does."""


def cells(*kinds: str) -> pytest.MarkDecorator:
    """Every row, over every controller."""
    TESTED.update(kinds)
    found = [pytest.param(row, controller, id=f"{row.id}-{controller}") for row in rows(*kinds) for controller in row.over]
    return pytest.mark.parametrize(("row", "controller"), found)


def single(*kinds: str) -> pytest.MarkDecorator:
    """Every row, once."""
    TESTED.update(kinds)
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in rows(*kinds)])


def patient(row: Row) -> list[str]:
    return ["--stall-shutdown-seconds", str(PATIENCE)] if "SIGSTOP" in row.fault or row.kind == "link" else []


TIMED = faulty("nothing", 0, "reading")
"""`hvd-lm` whose clock starts when rank 0 comes to its texts: how long a launch takes is the machine's affair."""
GRACEFUL = {"HOROVOD_WORKER_TERMINATION_SECONDS": str(GRACE)}


# --- ranks -----------------------------------------------------------------------------------------------


def what_of(row: Row) -> str:
    if row.fault.startswith("NaN"):
        return "nan"
    return {"kill -9 of the launcher": "kill launcher"}.get(row.fault, "kill" if "kill" in row.fault else "stop")


@cells("rank")
def test_a_rank(row: Row, controller: str, framework: str, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*faulty(what_of(row), row.rank, row.moment_of), *train(framework, out, *patient(row))]
    with started(launcher.of_ranks(2, *words, controller=controller), tmp_path / "job", **GRACEFUL) as job:
        check_end(job.ended(), row)
    check_then(row, framework, out, trained)


@cells("pause")
def test_a_pause(row: Row, controller: str, framework: str, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*faulty("stop", row.rank, row.moment_of), *train(framework, out, *patient(row))]
    with started(launcher.of_ranks(2, *words, controller=controller), tmp_path / "job") as job:
        stopped = psutil.Process(job.await_fault())
        time.sleep(5)
        assert stopped.status() == psutil.STATUS_STOPPED
        stopped.send_signal(signal.SIGCONT)
        check_end(job.ended(), row)
    check_then(row, framework, out, trained)


# --- hosts -----------------------------------------------------------------------------------------------


@cells("link")
def test_a_link(row: Row, controller: str, framework: str, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with places.two_hosts(tmp_path / "hosts") as hosts:
        words = [*faulty("wait", row.rank, row.moment_of), *train(framework, out, *patient(row))]
        first, second = hosts.names
        network = ["--network-interfaces", places.LINK]
        launch = ["horovodrun", "-np", "2", "-H", f"{first}:1,{second}:1", f"--{controller}", *network]
        command = hosts.on_first([*launch, *words])
        with started(command, tmp_path / "job", **GRACEFUL) as job:
            job.await_fault()
            hosts.cut()
            job.go()
            if row.then == "goes on":
                time.sleep(5)
                hosts.mend()
            check_end(job.ended(), row)
    check_then(row, framework, out, trained)


# --- disks and folders -----------------------------------------------------------------------------------


@cells("disk")
def test_a_full_disk(row: Row, controller: str, framework: str, trained: Trained, tmp_path: Path) -> None:
    with places.disk(tmp_path / "disk", "4m") as disk:
        out = disk.folder / "run"
        words = [*faulty("fill", row.rank, row.moment_of), *train(framework, out)]
        with started(launcher.of_ranks(2, *words, controller=controller), tmp_path / "job") as job:
            check_end(job.ended(), row)
        (out / FILLER).unlink()
        check_then(row, framework, out, trained)


def prepare(out: Path, text: Path) -> list[str]:
    return ["prepare", str(text), "--tokenizer", "word", "--vocabulary-size", "40", "--out", str(out)]


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    """That becomes more tokens than a small disk holds."""
    path = tmp_path / "long.txt"
    path.write_text(TEXT.read_text() * 20)
    return path


def check_prepared(out: Path, text: Path, tmp_path: Path) -> None:
    """The same bytes as anywhere else."""
    launcher.run("hvd-lm", *prepare(out, text)).expect_success()
    launcher.run("hvd-lm", *prepare(tmp_path / "elsewhere", text)).expect_success()
    assert contents(out) == contents(tmp_path / "elsewhere")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@single("prepare disk")
def test_a_full_disk_under_prepare(row: Row, long_text: Path, tmp_path: Path) -> None:
    with places.disk(tmp_path / "disk", "32k") as disk:
        out = disk.folder / "prepared"
        with started(["hvd-lm", *prepare(out, long_text)], tmp_path / "job") as job:
            check_end(job.ended(), row)
        assert list(disk.folder.iterdir()) == []
        disk.remount("size=8m")
        check_prepared(out, long_text, tmp_path)


@single("prepare kill")
def test_a_killed_prepare(row: Row, long_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    with started([*faulty("kill", 0, row.moment_of), *prepare(out, long_text)], tmp_path / "job") as job:
        check_end(job.ended(), row)
    assert not out.exists()
    check_prepared(out, long_text, tmp_path)


@single("read-only")
def test_a_read_only_folder(row: Row, framework: str, trained: Trained, tmp_path: Path) -> None:
    with places.disk(tmp_path / "disk", "4m") as disk:
        out = disk.folder / "run"
        shutil.copytree(trained(framework, 6), out)
        before = contents(out)
        disk.remount("ro")
        words = [*TIMED, *train(framework, out, "--resume", "auto")]
        with started(launcher.of_ranks(2, *words), tmp_path / "job") as job:
            check_end(job.ended(), row)
        assert contents(out) == before
        disk.remount("rw")
        go_on(framework, out)
        check_same(out, trained(framework, STEPS))


@single("read-only resume")
def test_going_on_from_a_read_only_folder(row: Row, framework: str, trained: Trained, tmp_path: Path) -> None:
    with places.disk(tmp_path / "disk", "4m") as disk:
        earlier, out = disk.folder / "run", tmp_path / "run"
        shutil.copytree(trained(framework, 6), earlier)
        disk.remount("ro")
        words = [*TIMED, *train(framework, out, "--resume", earlier)]
        with started(launcher.of_ranks(2, *words), tmp_path / "job") as job:
            check_end(job.ended(), row)
    assert launcher.losses(out) == launcher.losses(trained(framework, STEPS))[6:]


@single("read-only prepare")
def test_prepare_into_a_read_only_folder(row: Row, long_text: Path, tmp_path: Path) -> None:
    with places.disk(tmp_path / "disk", "4m") as disk:
        disk.remount("ro")
        with started(["hvd-lm", *prepare(disk.folder / "prepared", long_text)], tmp_path / "job") as job:
            check_end(job.ended(), row)


# --- checkpoints -----------------------------------------------------------------------------------------


def damage(run: Path, how: str, newest: bool) -> None:
    folders = sorted((run / FOLDER).glob("step-*"))
    assert len(folders) > 1
    for folder in folders[-1:] if newest else folders:
        path = folder / "weights.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content if how == "altered" else content[:-5])


@single("checkpoint truncated", "checkpoint altered", "checkpoints truncated", "other model", "other text")
def test_what_a_run_goes_on_from(row: Row, framework: str, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained(framework, 6), out)
    if row.kind.startswith("checkpoint"):
        damage(out, row.kind.split()[1], newest=row.kind.startswith("checkpoint "))
    before = contents(out)
    words = [*TIMED, *train(framework, out, "--resume", "auto")]
    if row.kind == "other model":
        words += ["--hidden-size", "9"]
    elif row.kind == "other text":
        (tmp_path / "other.txt").write_text(TEXT.read_text()[: TEXT.stat().st_size // 2])
        words = ["bash", "-c", f'[ "$HOROVOD_RANK" = 0 ] || set -- "$@" --data {tmp_path}/other.txt; exec "$@"', "bash", *words]
    with started(launcher.of_ranks(2, *words), tmp_path / "job") as job:
        check_end(job.ended(), row)
    if row.code:
        assert contents(out) == before
    if row.then == "resumed":
        go_on(framework, out)
        check_same(out, trained(framework, STEPS))


# --- two runs --------------------------------------------------------------------------------------------


@cells("second run")
def test_a_second_run(row: Row, controller: str, framework: str, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*faulty("wait", row.rank, row.moment_of), *train(framework, out)]
    with started(launcher.of_ranks(2, *words, controller=controller), tmp_path / "first") as first:
        first.await_fault()
        second_words = launcher.of_ranks(2, *TIMED, *train(framework, out, "--resume", "auto"), controller=controller)
        with started(second_words, tmp_path / "second") as second:
            check_end(second.ended(), row)
        first.go()
        met = first.ended()
        assert (met.code, met.lines) == (0, []), met.output
    check_then(row, framework, out, trained)


def test_every_row_has_a_test() -> None:
    assert {row.kind for row in ROWS} == TESTED
