"""The levers of Horovod and OpenMPI: variables that both read once, in `hvd.init()`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvd_lm.config import CommunicationConfig
from hvd_lm.job.launcher import launched_size
from hvd_lm.job.threads import cores, default_threads, ranks_on_these_cores

_PATIENCE = "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"
_OPENMPI = {
    # Its own choice takes up to twice the time that the link needs, the ring no more than a tenth above it.
    "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
    "OMPI_MCA_coll_tuned_dynamic_rules_filename": str(Path(__file__).with_name("openmpi_allreduce.conf")),
    # In one piece, the data of a rank would hold up its answers to the other's requests: both directions take turns then.
    "OMPI_MCA_btl_tcp_rdma_pipeline_frag_size": str(2**17),
}


def levers(config: CommunicationConfig) -> dict[str, Any]:
    """What Horovod reads of `config`, once, when it starts; by the names of the settings."""
    found = {
        name: getattr(config, name)
        for name in (
            "fusion_threshold_mb",
            "cycle_time_ms",
            "autotune",
            "timeline_filename",
            "hierarchical_allreduce",
            "stall_shutdown_seconds",
        )
    }
    if config.fusion_threshold_mb is None and not config.autotune:
        # Few and large as the tensors are, a message for each costs less than copies into a buffer and out of it.
        found["fusion_threshold_mb"] = 0
    return found


def patience(config: CommunicationConfig) -> float:
    """Seconds that ranks wait for one of them, 0 for ever: as horovodrun or the user was told, or else as `config` says."""
    told = os.environ.get(_PATIENCE, "")
    return float(told) if told.isdecimal() else config.stall_shutdown_seconds


@contextlib.contextmanager
def horovod_environment(config: CommunicationConfig) -> Iterator[None]:
    """The environment for `hvd.init()`, when Horovod reads the levers of `config` from it, once.

    A variable that is set already (by horovodrun or the user) stays. Afterwards the environment is as before, so that a job
    launched from this process does not inherit what was meant for it alone.
    """
    settings = {_PATIENCE: str(config.stall_shutdown_seconds), **_OPENMPI}
    if seconds := patience(config):
        # Horovod ends nothing before it has warned.
        settings["HOROVOD_STALL_CHECK_TIME_SECONDS"] = str(min(60, max(1, int(seconds) // 2)))
    if (fusion_threshold_mb := levers(config)["fusion_threshold_mb"]) is not None:
        settings["HOROVOD_FUSION_THRESHOLD"] = str(fusion_threshold_mb * 2**20)
    if config.cycle_time_ms is not None:
        settings["HOROVOD_CYCLE_TIME"] = str(config.cycle_time_ms)
    if config.autotune:
        settings["HOROVOD_AUTOTUNE"] = "1"
    if config.timeline_filename is not None:
        settings["HOROVOD_TIMELINE"] = str(config.timeline_filename)
    if config.hierarchical_allreduce:
        settings["HOROVOD_HIERARCHICAL_ALLREDUCE"] = "1"
    if launched_size() == 1:
        # Without a launcher MPI would start a daemon for its singleton; Gloo needs nothing.
        settings |= {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
    if ranks_on_these_cores() * default_threads() >= cores():
        # OpenMPI otherwise polls on the core that a rank computes on.
        settings["OMPI_MCA_mpi_yield_when_idle"] = "1"
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
