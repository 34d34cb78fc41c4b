"""``hvd-lm train --plan auto``: a run that measures its own link, and takes the fastest of the ways to communicate that it may."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hvd_lm.adapters.base import Adapter
from hvd_lm.communication.link import Link
from hvd_lm.communication.measure import Work, measure_link
from hvd_lm.communication.plan import plan, require_plannable
from hvd_lm.communication.planned import COMPRESSIONS, Plan
from hvd_lm.communication.ring import CollectiveName
from hvd_lm.config import CommunicationConfig, Framework, TopologyConfig
from hvd_lm.job.memory import return_freed_memory
from hvd_lm.job.messages import tell

SECONDS = 10.0
"""To measure, about; a slow link or a large model takes a few operations, or windows, whatever they take."""
LARGEST = 2**22
"""Bytes."""
_COLLECTIVES: tuple[CollectiveName, ...] = ("allreduce", "allgather")
TAKEN = ("compression", "reduce_every", "reduce_start_steps", "late_gradients")
"""Settings of a way."""


def choose(
    adapter: Adapter,
    link: Link | None,
    framework: Framework,
    work: Work,
    topology: TopologyConfig,
    common: Mapping[str, Any],
    earlier: Mapping[str, Any] | None,
) -> tuple[CommunicationConfig, Link | None]:
    """How the run of `work` communicates, which the `adapter` is told, and the link that predicts it: on rank 0 `link`, or what was
    measured.

    That of `work` itself unless it is to be planned. A run that goes on from one with the settings `earlier`, which rank 0 has,
    goes on as that did. Raises ConfigError, on all ranks alike, if it cannot be predicted, or ranks have not the same in `common`.
    Collective.
    """
    job, asked = adapter.job, work.communication
    if asked.plan is None:
        return asked, link
    with job.trouble.noted():
        require_plannable(asked, topology)
    job.agree(common)
    chosen = replace(asked, plan=None)
    if before := job.broadcast(earlier):
        of_way = before.get("communication", {})
        chosen = replace(chosen, **{name: of_way[name] for name in TAKEN if name in of_way})
        tell(f"--plan auto: the run goes on as it began, with {words(chosen)}")
    elif job.topology.size == 1:
        tell("--plan auto: one rank has nothing to send, and nothing to choose")
    else:
        # Nothing is to be kept, or late, while it is measured; and nothing to be left of the model that is timed.
        plain = replace(chosen, compression="none", reduce_every=1, late_gradients=False)
        measured = measure_link(type(adapter)(job, plain), framework, SECONDS, LARGEST, work, _COLLECTIVES)
        gc.collect()
        return_freed_memory()
        found = of_link(measured, framework, work, topology, job.topology.size)
        # Unlike processors may round unlike: rank 0's is that of all.
        pick = job.broadcast(found.pick)
        chosen = replace(
            chosen,
            compression=pick.compression,
            reduce_every=pick.reduce_every,
            reduce_start_steps=chosen.reduce_start_steps if pick.reduce_every > 1 else 0,
            late_gradients=pick.late_gradients,
        )
        limits, does, _ = found.explanation
        tell(f"--plan auto takes {words(chosen)}. {limits} {does}")
        link = link or (measured if job.topology.is_writer else None)
    adapter.communicate(chosen)
    return chosen, link


def of_link(link: Link, framework: Framework, work: Work, topology: TopologyConfig, ranks: int) -> Plan:
    """The plan of a run whose ranks and steps are given: exact gradients as float32 or halves, and what `work` asks for besides."""
    asked, data = work.communication, work.data
    tokens = ranks * asked.backward_passes_per_step * data.batch_size * data.sequence_length
    allowed = tuple(name for name in COMPRESSIONS if name != "powersgd" or asked.compression == "powersgd")
    return plan(link, framework, work, topology, (ranks,), tokens, allowed)


def words(communication: CommunicationConfig) -> str:
    """Its way, as flags."""
    found = [f"--compression {communication.compression}"]
    if communication.reduce_every > 1:
        found.append(f"--reduce-every {communication.reduce_every}")
    if communication.late_gradients:
        found.append("--late-gradients")
    return " ".join(found)
