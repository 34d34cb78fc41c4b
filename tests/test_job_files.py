"""The job files take their settings as words, never as something to run, and act on exit codes. Stand-ins for what launches tell
what they were given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import launcher
import pytest

JOBS = Path(launcher.__file__).parents[1] / "jobs"
FILE = JOBS / "several_hosts.sh"


@pytest.fixture
def launch(tmp_path: Path):  # type: ignore[no-untyped-def]
    tell = tmp_path / "horovodrun"
    tell.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    tell.chmod(0o755)

    def start(**settings: str) -> launcher.Ended:
        return launcher.run("bash", FILE, "a text.txt", PATH=f"{tmp_path}:/usr/bin:/bin", **settings)

    return start


def test_hosts_and_their_ranks(launch) -> None:  # type: ignore[no-untyped-def]
    words = launch(HOSTS="gpu-1.lan:4,10.0.0.2:08", CONTROLLER="mpi", NETWORK="eth0,ib0", SSH_PORT="2222")
    assert words.code == 2  # 08 is no number of ranks
    words = launch(HOSTS="gpu-1.lan:4,10.0.0.2:12", CONTROLLER="mpi", NETWORK="eth0,ib0", SSH_PORT="2222").output.splitlines()
    assert words[:5] == ["-np", "16", "-H", "gpu-1.lan:4,10.0.0.2:12", "--mpi"]
    assert words[5:9] == ["--network-interfaces", "eth0,ib0", "--ssh-port", "2222"]
    assert words[-2:] == ["--data", "a text.txt"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOSTS", "a:x[$(touch {folder}/run)]"),
        ("HOSTS", "a:2,b:$(touch {folder}/run)"),
        ("HOSTS", "a:2\n;touch {folder}/run"),
        ("HOSTS", "-oProxyCommand=touch:1"),
        ("HOSTS", "a"),
        ("HOSTS", "a:2,"),
        ("HOSTS", "a:0"),
        ("CONTROLLER", "gloo --start-timeout 1"),
        ("NETWORK", "eth0;touch {folder}/run"),
        ("SSH_PORT", "22 -oProxyCommand=x"),
    ],
)
def test_what_is_no_name_or_number_is_refused(launch, name: str, value: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ended = launch(**{"HOSTS": "a:2", name: value.format(folder=tmp_path)})
    assert ended.code == 2
    assert f"{name} must be" in ended.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("code", "goes_back"), [(0, False), (3, False), (5, True), (138, True)])
def test_a_slurm_job_that_was_stopped_goes_back_into_the_queue(code: int, goes_back: bool, tmp_path: Path) -> None:
    for name, ends_with in (("srun", code), ("scontrol", 0)):
        (tmp_path / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\nexit {ends_with}\n')
        (tmp_path / name).chmod(0o755)
    job = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(JOBS.parent), "SLURM_JOB_ID": "17"}
    ended = launcher.run("bash", JOBS / "slurm.sbatch", "a text.txt", "--steps", "5", OUT="a run", **job)
    assert ended.code == code
    words = ended.output.splitlines()
    assert words[:2] == ["srun", "--mpi=pmix"]
    of_training = words[words.index("hvd-lm") : None if not goes_back else words.index("scontrol")]
    assert of_training[1:4] == ["train", "--config", str(JOBS / "reference.yaml")]
    assert of_training[-7:] == ["a run", "--resume", "auto", "--data", "a text.txt", "--steps", "5"]
    assert words[len(words) - 3 :] == ["scontrol", "requeue", "17"] or not goes_back
    assert ("scontrol" in words) == goes_back


def test_job_files_are_sound_shell() -> None:
    """By shellcheck where there is one, else by bash."""
    files = sorted([*JOBS.glob("*.sh"), *JOBS.glob("*.sbatch")])
    assert len(files) >= 5
    for file in files:
        assert os.access(file, os.X_OK), file
        launcher.run("bash", "-n", file).expect_success()
        if shutil.which("shellcheck"):
            launcher.run("shellcheck", file).expect_success()
