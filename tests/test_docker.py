"""The images, as far as no image is needed: their pins are what is tested, and linters have nothing to say."""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from hvd_lm.job import build_horovod, cuda_from_pip

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
PINS: dict[str, str] = runpy.run_path(str(DOCKER / "pins.py"))["pins"]()
ROOTS: tuple[str, ...] = runpy.run_path(str(DOCKER / "pins.py"))["ROOTS"]


def test_pins_are_what_is_installed_here() -> None:
    """`make setup` takes them, too: what the images hold is what the tests run with."""
    here = runpy.run_path(str(DOCKER / "pins.py"))["closure"](ROOTS)
    assert len(here) > 20
    assert {name: (version, PINS.get(name)) for name, version in here.items() if PINS.get(name) != version} == {}, (
        "run python docker/pins.py"
    )


def test_pins_fit_the_package_and_the_recipe() -> None:
    ours = re.findall(r'"([\w\-\[\]]+[=<>~]=?[^"]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    wanted = [*map(Requirement, ours), *map(Requirement, (*build_horovod.BUILD_REQUIREMENTS, *cuda_from_pip.COMPILER))]
    pinned = [one for one in wanted if canonicalize_name(one.name) in PINS]
    assert {"torch", "tensorflow", "tensorflow-cpu", "cmake", "setuptools", "nvidia-cuda-runtime"} <= {one.name for one in pinned}
    assert [str(one) for one in pinned if Version(PINS[canonicalize_name(one.name)]) not in one.specifier] == []
    for name in cuda_from_pip.NCCL:
        assert name in PINS


@pytest.mark.ranks
def test_settings_of_openmpi_leave_the_network_to_the_job() -> None:
    """horovodrun --network-interfaces names one, which OpenMPI refuses where a file excludes some: nothing passed between pods."""
    pytest.importorskip("mpi4py")
    network = [word for kind in ("btl_tcp", "oob_tcp") for word in ("--mca", f"{kind}_if_include", "lo")]
    # Rank 0 tells both sums: lines of two ranks may run into each other.
    sums = "world.gather(world.Dup().allreduce(world.rank + 1))"
    program = f"from mpi4py import MPI; world = MPI.COMM_WORLD; sums = {sums}; world.rank or print(*sums)"
    ended = subprocess.run(
        ["mpirun", "--oversubscribe", "-n", "2", "--mca", "btl", "tcp,self", *network, sys.executable, "-c", program],
        env=os.environ | {"OMPI_MCA_mca_base_param_files": str(DOCKER / "openmpi-mca-params.conf")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["3", "3"]), ended.stderr


def test_nothing_is_taken_by_a_moving_name() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    stages = re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE)
    (base,) = set(bases) - set(stages)
    assert re.fullmatch(r"debian:\d+\.\d+-slim", base)
    assert DOCKERFILE.count(f'base.name="docker.io/library/{base}"') == 2
    assert DOCKERFILE.count(f'version="{importlib.metadata.version("hvd_lm")}"') == 2
    assert all("--constraint docker/constraints.txt" in line for line in DOCKERFILE.splitlines() if "pip install" in line)


def test_recipe_is_copied_whole() -> None:
    """What build_horovod imports beside itself."""
    needed = re.findall(r"^    (?:from|import) (\w+)", (ROOT / "hvd_lm/job/build_horovod.py").read_text(), re.MULTILINE)
    beside = {name for name in needed if (ROOT / "hvd_lm/job" / f"{name}.py").exists()}
    assert len(beside) > 2
    copies = [line for line in DOCKERFILE.splitlines() if line.startswith("COPY hvd_lm/job/build_horovod.py")]
    assert len(copies) == 2
    for line in copies:
        assert {f"hvd_lm/job/{name}.py" for name in beside} <= set(line.split())


def test_no_key_can_get_in() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in ignored
    assert "rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*" in DOCKERFILE
    assert "ssh-keygen" not in DOCKERFILE
    kept = [DOCKER, ROOT / "jobs", ROOT / "hvd_lm"]
    assert [path for folder in kept for path in folder.rglob("*") if re.match(r"id_|ssh_host_|.*\.(key|pem)$", path.name)] == []


@pytest.mark.parametrize("command", ["hadolint docker/Dockerfile", "shellcheck docker/slim.sh docker/two_pods.sh"])
def test_linters_are_content(command: str) -> None:
    words = command.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0
