"""The build of Horovod: its key, what comes from elsewhere, the check of what is installed. Nothing is compiled here."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from hvd_lm.job import build_horovod, build_tools, cuda_from_pip, horovod_patches
from hvd_lm.job.build_horovod import (
    HOROVOD_VERSION,
    Mpi,
    build_environment,
    build_key,
    check_installed,
    is_build_variable,
)
from hvd_lm.job.build_tools import BuildError
from hvd_lm.job.cuda_from_pip import ARCHITECTURES, Cuda

KEY = "0123456789ab"
WANTED = f"{HOROVOD_VERSION}+hvdlm.{KEY}"
FRAMEWORKS = {"torch": "2.13.0", "tensorflow": "2.21.0"}
MPI = Mpi("mpirun (Open MPI) 4.1.8", "/usr/bin/mpicxx")
PATCHES = horovod_patches.patches()
COMPILER = "g++ (Debian 12.2.0-14) 12.2.0"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment may steer a build here."""
    steering = [name for name in os.environ if is_build_variable(name)]
    for name in [*steering, "HVD_LM_CACHE", "XDG_CACHE_HOME"]:
        monkeypatch.delenv(name, raising=False)


# --- the key ---------------------------------------------------------------------------------------------


def test_key_is_stable_and_fits_a_local_version() -> None:
    key = build_key(FRAMEWORKS, MPI, COMPILER)
    assert key == build_key(dict(reversed(FRAMEWORKS.items())), MPI, COMPILER)
    assert len(key) == 12
    assert set(key) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("frameworks", "mpi", "compiler"),
    [
        ({"torch": "2.13.0"}, MPI, COMPILER),
        ({"tensorflow": "2.21.0"}, MPI, COMPILER),
        ({**FRAMEWORKS, "torch": "2.13.1"}, MPI, COMPILER),
        ({**FRAMEWORKS, "torch": "2.13.0+cu130"}, MPI, COMPILER),
        (FRAMEWORKS, None, COMPILER),
        (FRAMEWORKS, Mpi("mpirun (Open MPI) 5.0.0", MPI.compiler), COMPILER),
        (FRAMEWORKS, Mpi(MPI.version, "/opt/mpi/bin/mpicxx"), COMPILER),
        (FRAMEWORKS, MPI, "g++ (Debian 14.2.0-19) 14.2.0"),
    ],
)
def test_key_changes_with_frameworks_mpi_and_compiler(frameworks: dict[str, str], mpi: Mpi | None, compiler: str) -> None:
    assert build_key(frameworks, mpi, compiler) != build_key(FRAMEWORKS, MPI, COMPILER)


@pytest.mark.parametrize("change", ["patch changed", "patch added", "recipe changed"])
def test_key_changes_with_the_recipe_and_its_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    patches = shutil.copytree(horovod_patches.FOLDER, tmp_path / "patches")
    recipe = Path(shutil.copy(build_horovod.__file__, tmp_path))
    monkeypatch.setattr(horovod_patches, "FOLDER", patches)
    monkeypatch.setattr(build_horovod, "__file__", str(recipe))
    before = build_key(FRAMEWORKS, MPI, COMPILER)
    changed = {
        "patch changed": patches / f"{PATCHES[0].name}.patch",
        "patch added": patches / "another.patch",
        "recipe changed": recipe,
    }[change]
    with changed.open("a") as file:
        file.write("\n")
    assert build_key(FRAMEWORKS, MPI, COMPILER) != before


BUILD_VARIABLES = [
    "HOROVOD_WITH_MPI",
    "HOROVOD_WITHOUT_GLOO",
    "HOROVOD_WITHOUT_TENSORFLOW",
    "HOROVOD_GPU",
    "HOROVOD_GPU_OPERATIONS",
    "HOROVOD_GPU_ALLREDUCE",
    "HOROVOD_CPU_OPERATIONS",
    "HOROVOD_CUDA_HOME",
    "HOROVOD_NCCL_HOME",
    "HOROVOD_NCCL_LINK",
    "HOROVOD_ROCM_HOME",
    "HOROVOD_BUILD_CUDA_CC_LIST",
    "HOROVOD_BUILD_ARCH_FLAGS",
    "HOROVOD_NVTX_INCLUDE",
    "HOROVOD_DEBUG",
    "HOROVOD_SKIP_COMPILE",
    "HOROVOD_ALLOW_MIXED_GPU_IMPL",
    "HOROVOD_CMAKE",
]
RUN_TIME_VARIABLES = [
    "HOROVOD_FUSION_THRESHOLD",
    "HOROVOD_CYCLE_TIME",
    "HOROVOD_AUTOTUNE",
    "HOROVOD_TIMELINE",
    "HOROVOD_RANK",
    "HOROVOD_SIZE",
    "HOROVOD_CONTROLLER",
    "HOROVOD_GLOO_IFACE",
    "HOROVOD_GLOO_TIMEOUT_SECONDS",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS",
    "HOROVOD_HIERARCHICAL_ALLREDUCE",
    "HOROVOD_NUM_NCCL_STREAMS",
    "HOROVOD_LOG_LEVEL",
    "HVD_LM_CACHE",
    "NCCL_DEBUG",
    "PATH_OF_HOROVOD_WITH_MPI",
]


@pytest.mark.parametrize("name", BUILD_VARIABLES)
def test_key_changes_with_a_build_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert is_build_variable(name)
    keys = {build_key(FRAMEWORKS, MPI, COMPILER)}
    for value in ("1", "/opt/other"):
        monkeypatch.setenv(name, value)
        keys.add(build_key(FRAMEWORKS, MPI, COMPILER))
    assert len(keys) == 3


@pytest.mark.parametrize("name", RUN_TIME_VARIABLES)
def test_key_does_not_change_with_a_run_time_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert not is_build_variable(name)
    before = build_key(FRAMEWORKS, MPI, COMPILER)
    monkeypatch.setenv(name, "67108864")
    assert build_key(FRAMEWORKS, MPI, COMPILER) == before


def test_environments_that_bring_the_same_mpi_share_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for scripts in ("/home/a/venv/bin", "/home/b/venv/bin"):
        monkeypatch.setattr(sysconfig, "get_path", lambda _, scripts=scripts: scripts)
        keys.add(build_key(FRAMEWORKS, Mpi(MPI.version, f"{scripts}/mpicxx"), COMPILER))
    assert len(keys) == 1


def test_build_is_told_what_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "NCCL")
    env = build_environment({"torch": "2.13.0"}, None)
    told = {name: value for name, value in env.items() if name.startswith("HOROVOD_")}
    assert told == {
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_GPU_OPERATIONS": "NCCL",
    }
    assert env["PATH"].split(":")[0] == sysconfig.get_path("scripts")


# --- for GPUs --------------------------------------------------------------------------------------------

NCCL = Cuda("nvidia-nccl-cu13", "2.29.7", Path("/site-packages/nvidia/nccl"))


def test_key_of_a_build_for_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own, which changes with NCCL and with the patches that no other build has."""

    def keys() -> list[str]:
        others = [Cuda("nvidia-nccl-cu12", NCCL.version, NCCL.home), Cuda(NCCL.distribution, "2.30.3", NCCL.home)]
        return [build_key({"torch": "2.13.0"}, MPI, COMPILER, cuda) for cuda in (None, NCCL, *others)]

    patches = shutil.copytree(horovod_patches.FOLDER, tmp_path / "patches")
    monkeypatch.setattr(horovod_patches, "FOLDER", patches)
    before = keys()
    assert len(set(before)) == 4
    with (patches / "gpu" / "nccl-beside-us.patch").open("a") as file:
        file.write("\n")
    after = keys()
    assert after[0] == before[0]
    assert not set(after[1:]) & set(before)


def test_patches_for_gpus_go_with_horovods_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not build_horovod.for_gpu(None)
    monkeypatch.setenv("HOROVOD_GPU_OPERATIONS", "NCCL")
    assert build_horovod.for_gpu(None)


@pytest.mark.parametrize(
    ("frameworks", "installed", "words"),
    [
        (["torch"], {}, "a build of torch with CUDA brings"),
        (["tensorflow"], {}, r"a build of tensorflow with CUDA brings.*tensorflow\[and-cuda\]"),
        (["torch", "tensorflow"], {"nvidia-nccl-cu13": "2.29.7"}, "one framework, not for torch and tensorflow"),
    ],
)
def test_gpus_without_cuda_are_refused(
    frameworks: list[str],
    installed: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build_horovod, "installed_frameworks", lambda: dict.fromkeys(frameworks, "1"))
    monkeypatch.setattr(cuda_from_pip, "installed_version", installed.get)
    assert build_horovod.main(["--gpu", "nccl"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


def test_build_for_gpus_has_its_compiler_first_and_nccl_of_the_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(*words: str, **_: object) -> str:
        lib = Path(words[words.index("--target") + 1]) / "nvidia" / "cu13" / "lib"
        lib.mkdir(parents=True)
        (lib / "libcudart.so.13").touch()
        return ""

    monkeypatch.setattr(cuda_from_pip, "pip", install)
    with cuda_from_pip.build_variables(NCCL) as gpu:
        env = build_environment({"torch": "2.13.0"}, None, gpu)
        home = Path(env["HOROVOD_CUDA_HOME"])
        assert (home / "lib64" / "libcudart.so").exists()
    assert not home.exists(), "the compiler is for the build alone"
    assert env["PATH"].split(":")[:2] == [sysconfig.get_path("scripts"), f"{home}/bin"]
    told = {name: env[f"HOROVOD_{name}"] for name in ("GPU_OPERATIONS", "NCCL_HOME", "NCCL_LINK", "BUILD_CUDA_CC_LIST")}
    assert told == {
        "GPU_OPERATIONS": "NCCL",
        "NCCL_HOME": str(NCCL.home),
        "NCCL_LINK": "SHARED",
        "BUILD_CUDA_CC_LIST": ARCHITECTURES,
    }
    monkeypatch.setenv("HOROVOD_CUDA_HOME", "/usr/local/cuda")
    with cuda_from_pip.build_variables(NCCL) as gpu:
        assert gpu["HOROVOD_CUDA_HOME"] == gpu["CUDA_HOME"] == "/usr/local/cuda"


# --- what comes from elsewhere ---------------------------------------------------------------------------


def test_the_source_is_the_one_that_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its setup.py runs as this user, so that pip must compare the sum first."""
    asked: list[tuple[str, ...]] = []

    def download(*words: str, **_: object) -> str:
        asked.append(words)
        wanted = Path(words[words.index("-r") + 1]).read_text()
        assert wanted == f"horovod=={HOROVOD_VERSION} --hash=sha256:{build_horovod.HOROVOD_SHA256}\n"
        raise BuildError("THESE PACKAGES DO NOT MATCH THE HASHES")

    monkeypatch.setattr(build_horovod, "pip", download)
    with pytest.raises(BuildError, match="DO NOT MATCH"), build_horovod.unpacked_sdist():
        pass
    (words,) = asked
    assert "--require-hashes" in words
    assert re.fullmatch("[0-9a-f]{64}", build_horovod.HOROVOD_SHA256)


@pytest.mark.parametrize("flags", [[], ["--check"], ["--check", "--install-system-packages"], ["--install-system-packages"]])
def test_the_system_is_changed_only_if_asked_for_and_said_before(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, str] = {}

    def run(command: list[str], **_: object) -> str:
        if command[0] == "apt-get":
            said.setdefault("before", capsys.readouterr().out)
        return "g++ 12"

    monkeypatch.setattr(build_horovod, "installed_frameworks", lambda: FRAMEWORKS)
    monkeypatch.setattr(build_horovod, "check_installed", lambda *_: None)
    monkeypatch.setattr(build_horovod, "find_mpi", lambda: MPI)
    monkeypatch.setattr(build_horovod, "can_use_apt", lambda: True)
    monkeypatch.setattr(build_horovod, "run", run)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    code = build_horovod.main(flags)
    if flags == ["--install-system-packages"]:
        assert code == 0
        assert "apt-get install -y -qq --no-install-recommends g++ make" in said["before"]
    else:
        assert code == 2
        assert said == {}
        assert "--install-system-packages" in capsys.readouterr().err


# --- what is installed -----------------------------------------------------------------------------------


def pretend_installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(build_horovod, "installed_version", lambda *_: version)


def test_missing_horovod_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, None)
    assert check_installed(FRAMEWORKS, MPI, KEY) == "Horovod is not installed"


@pytest.mark.parametrize("version", [HOROVOD_VERSION, "0.27.0", f"{HOROVOD_VERSION}+hvdlm.ba9876543210", f"{WANTED}0"])
def test_foreign_version_is_reported(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend_installed(monkeypatch, version)
    problem = check_installed(FRAMEWORKS, MPI, KEY)
    assert problem is not None
    assert problem.startswith(f"Horovod {version} was built for other versions")


def test_wanted_build_that_loads_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, WANTED)
    asked: list[str] = []

    def loads(command: list[str], **_: object) -> str:
        asked.append(command[-1])
        return ""

    monkeypatch.setattr(build_horovod, "run", loads)
    assert check_installed(FRAMEWORKS, MPI, KEY) is None
    assert [name for name in FRAMEWORKS if any(f"horovod.{name} " in code for code in asked)] == list(FRAMEWORKS)


def test_wanted_build_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, WANTED)

    def broken(command: list[str], **_: object) -> str:
        if "horovod.tensorflow" in command[-1]:
            raise BuildError("undefined symbol: _ZN10tensorflow")
        return ""

    monkeypatch.setattr(build_horovod, "run", broken)
    problem = check_installed(FRAMEWORKS, MPI, KEY)
    assert problem is not None
    assert "tensorflow does not load" in problem
    assert "undefined symbol" in problem


def test_installed_version_of_the_first_that_is_there() -> None:
    assert build_tools.installed_version("no-such-distribution") is None
    assert build_tools.installed_version("no-such-distribution", "pytest") == pytest.__version__


def test_framework_under_another_distribution_name(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"tensorflow-cpu": "2.21.0"}
    monkeypatch.setattr(
        build_horovod, "installed_version", lambda *names: next((present[name] for name in names if name in present), None)
    )
    assert build_horovod.installed_frameworks() == {"tensorflow": "2.21.0"}


# --- the command -----------------------------------------------------------------------------------------


def test_failed_command_is_told_with_the_end_of_its_output(tmp_path: Path) -> None:
    code = "print('x.cc:7: error: what')\nfor i in range(100): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(BuildError) as caught:
        build_tools.run([sys.executable, "-c", code], cwd=tmp_path)
    lines = str(caught.value).splitlines()
    assert "ended with 3" in str(caught.value)
    assert "x.cc:7: error: what" in lines
    assert lines[-1] == "line 99"
    assert "line 10" not in lines


def test_without_a_framework_nothing_is_built(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build_horovod, "installed_frameworks", dict)
    assert build_horovod.main([]) == 2
    assert "install torch or TensorFlow first" in capsys.readouterr().err


@pytest.mark.parametrize(("problem", "code"), [(None, 0), ("Horovod is not installed", 1)])
def test_check_tells_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: str | None, code: int
) -> None:
    monkeypatch.setattr(build_horovod, "installed_frameworks", lambda: FRAMEWORKS)
    monkeypatch.setattr(build_horovod, "ensure_compiler", lambda _: COMPILER)
    monkeypatch.setattr(build_horovod, "find_mpi", lambda: MPI)
    monkeypatch.setattr(build_horovod, "check_installed", lambda *_: problem)
    assert build_horovod.main(["--check"]) == code
    assert (problem or "is in place") in capsys.readouterr().out
