"""CUDA for Horovod's build, from pip's packages: the NCCL that the framework brings, and a compiler that is gone after the build.

The standard library only, as `build_horovod`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from hvd_lm.job.build_tools import BuildError, installed_version, pip, say
else:
    from build_tools import BuildError, installed_version, pip, say

COMPILER = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
)
"""Of CUDA 13 for TensorFlow, too, whose libraries are CUDA 12: pip has no nvcc of CUDA 12. Its runtime is linked in statically."""
ARCHITECTURES = "75,80,86,89,90,100,120"
"""Compute capabilities of Horovod's few kernels, where HOROVOD_BUILD_CUDA_CC_LIST does not say."""
NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
"""What torch 2.13 brings, and TensorFlow 2.21."""


@dataclass(frozen=True)
class Cuda:
    """The NCCL that a framework of this environment brings: Horovod takes the same, in the same process."""

    distribution: str
    version: str
    home: Path
    """Has include/nccl.h and lib/libnccl.so.2."""


def find_cuda(frameworks: Iterable[str]) -> Cuda:
    """The CUDA of this environment; raises BuildError where there is none, or two."""
    if len(names := list(frameworks)) != 1:
        raise BuildError(
            f"--gpu nccl builds for one framework, not for {' and '.join(names)}: torch brings CUDA 13 and TensorFlow CUDA 12, "
            "so give each an environment of its own"
        )
    for distribution in NCCL:
        if version := installed_version(distribution):
            home = Path(str(importlib.metadata.distribution(distribution).locate_file("nvidia/nccl")))
            return Cuda(distribution, version, home)
    raise BuildError(
        f"--gpu nccl needs the NCCL that a build of {names[0]} with CUDA brings: "
        "pip install torch (one whose version does not end in +cpu), or 'tensorflow[and-cuda]' in place of tensorflow-cpu"
    )


def is_wanted() -> bool:
    """Whether Horovod's own variables ask for operations on GPUs: then a build without `Cuda` needs the patches for them, too."""
    return any(name.startswith("HOROVOD_GPU_") for name in os.environ)


@contextlib.contextmanager
def build_variables(cuda: Cuda) -> Iterator[dict[str, str]]:
    """What Horovod's setup.py must be told while there is a compiler: of HOROVOD_CUDA_HOME, or pip's in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="cuda-") as folder:
        home = os.environ.get("HOROVOD_CUDA_HOME") or install_compiler(Path(folder))
        yield {
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "HOROVOD_CUDA_HOME": str(home),
            "CUDA_HOME": str(home),  # torch's
            "HOROVOD_NCCL_HOME": str(cuda.home),
            "HOROVOD_NCCL_LINK": "SHARED",
            "HOROVOD_BUILD_CUDA_CC_LIST": os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST") or ARCHITECTURES,
            # Horovod asks the first nvcc of the path.
            "PATH": os.pathsep.join((f"{home}/bin", os.environ.get("PATH", ""))),
        }


def install_compiler(folder: Path) -> Path:
    """nvcc and its headers in `folder`, under the names that CMake looks for; the environment stays as it is."""
    say(f"downloading {', '.join(COMPILER)}, for the build alone")
    pip("install", "-q", "--no-deps", "--target", str(folder), *COMPILER)
    home = folder / "nvidia" / "cu13"
    (home / "lib64").symlink_to("lib")
    (home / "lib" / "libcudart.so").symlink_to("libcudart.so.13")
    return home
