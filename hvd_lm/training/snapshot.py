"""A run between two steps, as one value that it can be left with and entered from: a checkpoint in memory.

A checkpoint on the disk is a snapshot that was written; `hvd_lm.checkpoint` knows how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from hvd_lm.adapters.base import Adapter, OptimizerState
from hvd_lm.adapters.job import Job
from hvd_lm.checkpoint.format import Checkpoint, Progress
from hvd_lm.job.memory import return_freed_memory
from hvd_lm.model.split import BROADCAST, blocks
from hvd_lm.model.weights import Array, Rows, check_weights, initial_rows
from hvd_lm.training import parts

Snapshot = Checkpoint


def enter(
    adapter: Adapter, snapshot: Snapshot | None, seed: int, initial: Callable[[], Mapping[str, Rows]] = dict
) -> tuple[int, Progress | None]:
    """Bring all ranks to where `snapshot` of rank 0 was, or to initial weights; how many steps that was, and the progress.

    Only rank 0 needs to give one. Initial weights are those that `initial` finds, the others come from the seed.
    Raises, on all ranks alike, CheckpointError if it does not fit, or what `initial` raises. Collective.
    """
    job = adapter.job
    with job.trouble.noted():
        if snapshot:
            check_weights(snapshot.weights, adapter.model)
            adapter.check_moments(snapshot.optimizer_state.moments)
    job.agree()
    step, progress = job.broadcast((snapshot.step, snapshot.progress) if snapshot else (0, None))
    if progress:
        parts.distribute(adapter, snapshot)
    with job.trouble.noted():
        if not progress and job.topology.data_rank == 0:
            adapter.load_weights({**initial_rows(adapter.model, seed), **initial()})
    job.agree()
    adapter.broadcast_state()
    return_freed_memory()
    return step, progress


def passed_on(job: Job, snapshot: Snapshot | None, source: int) -> Snapshot | None:
    """The `snapshot` of rank `source`, of whole weights, on rank 0; None on the others. Collective."""
    arrays: dict[str, Array] = {}
    empty = None
    if snapshot and job.topology.rank == source:
        arrays = {**snapshot.weights, **snapshot.optimizer_state.moments}
        empty = replace(snapshot, weights={}, optimizer_state=OptimizerState(snapshot.optimizer_state.applied_steps, {}))
    described, shapes = job.broadcast((empty, {name: array.shape for name, array in arrays.items()}), source)
    received: dict[str, Array] = {}
    for name, shape in shapes.items():
        for rows in blocks(range(shape[0]), shape, BROADCAST):
            piece = job.broadcast(arrays[name][rows.start : rows.stop] if arrays else None, source)
            if job.topology.is_writer:
                received.setdefault(name, np.empty(shape, piece.dtype))[rows.start : rows.stop] = piece
    if not job.topology.is_writer:
        return None
    weights = {name: array for name, array in received.items() if "/" not in name}
    moments = {name: array for name, array in received.items() if "/" in name}
    of_rank_0: Snapshot = replace(described, weights=weights, optimizer_state=replace(described.optimizer_state, moments=moments))
    return of_rank_0


def owned(snapshot: Snapshot) -> Snapshot:
    """The same in arrays of its own: `snapshot` may hold memory that training is about to change."""
    state = snapshot.optimizer_state
    return replace(
        snapshot,
        weights={name: np.array(array) for name, array in snapshot.weights.items()},
        optimizer_state=OptimizerState(state.applied_steps, {name: np.array(moment) for name, moment in state.moments.items()}),
        memory={name: np.array(array) for name, array in snapshot.memory.items()},
    )
