"""The job files take their settings as words, never as something to run, and act on exit codes. Stand-ins for what launches tell
what they were given."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import launcher
import pytest
import yaml

from hvd_lm.command_line.flags import parse_with_yaml
from hvd_lm.config import RunConfig

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
    files = sorted(file for kind in ("sh", "sbatch", "bsub") for file in JOBS.glob(f"*.{kind}"))
    assert len(files) >= 8
    for file in files:
        assert os.access(file, os.X_OK), file
        launcher.run("bash", "-n", file).expect_success()
        if shutil.which("shellcheck", path=launcher.with_scripts()["PATH"]):
            launcher.run("shellcheck", file).expect_success()


# --- other places ----------------------------------------------------------------------------------------


def test_the_kubernetes_job_is_an_mpijob() -> None:
    """By the operator's own schema."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((JOBS.parent / "tests" / "assets" / "mpijob_v2beta1.json").read_text())
    job = yaml.safe_load((JOBS / "kubernetes_mpijob.yaml").read_text())
    check = jsonschema.Draft7Validator(schema)
    assert [error.message for error in check.iter_errors(job)] == []
    workers = job["spec"]["mpiReplicaSpecs"]["Worker"]
    container = workers["template"]["spec"]["containers"][0]
    container["volumeMount"] = container.pop("volumeMounts")
    assert ["volumeMount" in error.message for error in check.iter_errors(job)] == [True]


def test_the_ranks_of_the_kubernetes_job_are_its_slots() -> None:
    spec = yaml.safe_load((JOBS / "kubernetes_mpijob.yaml").read_text())["spec"]
    its = {name: replica["template"]["spec"]["containers"][0] for name, replica in spec["mpiReplicaSpecs"].items()}
    words = its["Launcher"]["args"]
    assert int(words[words.index("-np") + 1]) == spec["slotsPerWorker"] * spec["mpiReplicaSpecs"]["Worker"]["replicas"]
    assert its["Worker"]["resources"]["limits"]["nvidia.com/gpu"] == spec["slotsPerWorker"]
    assert its["Launcher"]["image"] == its["Worker"]["image"]
    assert spec["sshAuthMountPath"] == "/home/mpiuser/.ssh"
    flags = words[words.index("train") + 1 :]
    config = JOBS / Path(flags.pop(flags.index("--config") + 1)).name
    flags.remove("--config")
    parsed = parse_with_yaml(RunConfig, "train", ["--config", str(config), *flags])
    assert parsed.resume == "auto"


@pytest.mark.parametrize("launch", ["jsrun", "horovodrun"])
@pytest.mark.parametrize("code", [0, 5])
def test_an_lsf_job_ends_as_its_ranks_do(launch: str, code: int, tmp_path: Path) -> None:
    """With a warning amid: bsub -Q puts what ends with 5 back into the queue."""
    (tmp_path / launch).write_text(
        f"#!/bin/bash\ntrap 'echo warned; exit {code}' USR1\n"
        'printf "%s\\n" "$@"\nkill -USR1 $PPID\nfor _ in {1..200}; do sleep 0.05; done\n'
    )
    (tmp_path / launch).chmod(0o755)
    slots = tmp_path / "slots"
    slots.write_text("batch1\nhost1\nhost1\nhost2\nhost2\n")
    ended = launcher.run(
        "bash", JOBS / "lsf.bsub", PATH=f"{tmp_path}:/usr/bin:/bin", TEXT="a text.txt", FLAGS="--steps 5", LAUNCH=launch, RANKS="2",
        LSB_DJOB_HOSTFILE=str(slots),
    )  # fmt: skip
    assert ended.code == code
    words = ended.output.splitlines()
    assert words[-5:] == ["--data", "a text.txt", "--steps", "5", "warned"]
    if launch == "horovodrun":
        assert words[:4] == ["-np", "4", "-H", "host1:2,host2:2"]


def test_plain_mpirun_gets_its_words(tmp_path: Path) -> None:
    (tmp_path / "mpirun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "mpirun").chmod(0o755)
    given = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOSTS": "one:4,two:4", "NETWORK": "eth0", "SSH_PORT": "2222"}
    words = launcher.run("bash", JOBS / "mpirun.sh", "a text.txt", **given).expect_success().output.splitlines()
    assert words[:2] == ["--host", "one:4,two:4"]
    assert words[words.index("plm_rsh_args") + 1].startswith("-p 2222 -o ServerAlive")
    assert words[words.index("btl_tcp_if_include") + 1] == "eth0"
    assert words[-4:] == ["--resume", "auto", "--data", "a text.txt"]
    for name in ("HOSTS", "NETWORK", "SSH_PORT"):
        ended = launcher.run("bash", JOBS / "mpirun.sh", "a text.txt", **{**given, name: "a; touch run"})
        assert ended.code == 2
        assert f"{name} must be" in ended.output
