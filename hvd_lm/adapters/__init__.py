"""One adapter per framework, behind the contract of `base.Adapter`. A framework is imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from hvd_lm.adapters.base import Adapter
from hvd_lm.compression.compressors import Compression
from hvd_lm.config import FRAMEWORKS, CommunicationConfig, TopologyConfig
from hvd_lm.errors import ConfigError, FrameworkError
from hvd_lm.job.stop import Stop

if TYPE_CHECKING:
    from hvd_lm.adapters.membership import Membership

_CLASSES = {
    "torch": ("hvd_lm.adapters.pytorch.adapter", "PyTorchAdapter"),
    "tensorflow": ("hvd_lm.adapters.tensorflow.adapter", "TensorFlowAdapter"),
}


def adapter_class(framework: str) -> type[Adapter]:
    """The adapter of `framework`, imported now.

    Raises ConfigError for an unknown name; FrameworkError if the framework, or Horovod for it, is absent or broken.
    """
    if framework not in _CLASSES:
        raise ConfigError(f"unknown framework {framework!r}: choose one of {', '.join(FRAMEWORKS)}")
    try:
        installed = importlib.util.find_spec(framework) is not None
    except ValueError:  # sys.modules[framework] = None, a usual way to hide a package
        installed = False
    if not installed:
        raise FrameworkError(f"{framework} is not installed: pip install 'hvd_lm[{framework}]'")
    module, name = _CLASSES[framework]
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except (ImportError, OSError, RuntimeError) as error:  # as a library or a file of it is missing
        reason = " ".join(str(error).split())
        raise FrameworkError(
            f"{framework} with Horovod does not load ({reason}): run python -m hvd_lm.job.build_horovod, then hvd-lm doctor"
        ) from error


def adapter(
    framework: str,
    communication: CommunicationConfig | None = None,
    topology: TopologyConfig | None = None,
    threads: int | None = None,
    *,
    deterministic: bool = False,
    comm: Any = None,
    compressor: Compression | None = None,
    multiply_adds: int | None = None,
) -> Adapter:
    """The adapter of `framework` ("torch" or "tensorflow"), in a job that this process joins (or alone), or the ranks of `comm`,
    a communicator of mpi4py, with each other. Gradients travel as a `compressor` of yours says. Where all that it will be asked for
    are calls of so many `multiply_adds`, a framework that cannot change its threads later takes as many as these are worth.
    Collective.

    Raises ConfigError for an unknown name or an impossible topology; FrameworkError if the framework is absent or broken.
    """
    chosen = adapter_class(framework)
    job = chosen.job_class(communication, topology, threads, deterministic=deterministic, comm=comm, multiply_adds=multiply_adds)
    return chosen(job, communication, compressor)


def membership(stop: Stop) -> Membership:
    """This process's in an elastic job; Horovod's launcher is imported now. Raises ConfigError if there is none."""
    found: Membership = importlib.import_module("hvd_lm.adapters.membership").Membership(stop)
    return found
