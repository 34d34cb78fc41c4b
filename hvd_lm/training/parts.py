"""What ranks hold of a model, on its way to a checkpoint and from one, block by block: no rank ever has the whole.

A checkpoint is rank 0's. Where a group divides a parameter, or its moments, the ranks of rank 0's group take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from hvd_lm.adapters.base import Adapter
from hvd_lm.adapters.job import Job
from hvd_lm.checkpoint import CheckpointWriter
from hvd_lm.checkpoint.format import Checkpoint
from hvd_lm.checkpoint.tensors import Piece, Tensors
from hvd_lm.model.split import Share, blocks, rounds
from hvd_lm.model.weights import Array, Rows


def is_divided(adapter: Adapter) -> bool:
    """Whether no rank holds all weights and moments."""
    return any(share.divided_over for share in adapter.held.values())


def save(adapter: Adapter, checkpoint: Checkpoint, writer: CheckpointWriter | None) -> None:
    """Write `checkpoint`, whose arrays are what each rank holds, by the `writer`, which only rank 0 has.

    Where ranks divide it, it is on the disk when this returns. What goes wrong is noted (`job.trouble`). Collective.
    """
    trouble = adapter.job.trouble
    if not is_divided(adapter):
        with trouble.noted():
            if writer:
                writer.write(checkpoint)
        return
    with _collected(adapter, checkpoint) as (weights, moments, memory), trouble.noted():
        if writer:
            writer.write_parts(checkpoint, weights, moments, memory)


@contextmanager
def _collected(adapter: Adapter, checkpoint: Checkpoint) -> Iterator[tuple[Tensors, Tensors, Tensors]]:
    """Weights, moments and memory of all ranks, from those of each, as rank 0 writes them; for the others nothing comes.
    Collective.

    Whoever leaves early, because a disk is full, keeps step with the others.
    """
    job = adapter.job
    of_all = (
        _tensors(job, adapter.shares, checkpoint.weights),
        _tensors(job, adapter.moments_held, checkpoint.optimizer_state.moments),
        _tensors(job, adapter.remembered, checkpoint.memory),
    )
    try:
        yield of_all
    finally:
        for tensors in of_all:
            for _ in tensors.pieces:
                pass


def distribute(adapter: Adapter, checkpoint: Checkpoint | None) -> None:
    """Give rank 0's group what each of it holds of the `checkpoint`, which only rank 0 has. Collective."""
    job = adapter.job
    arrays: dict[str, Rows] = {}
    if checkpoint:
        arrays = {**checkpoint.weights, **checkpoint.optimizer_state.moments, **adapter.fitted(checkpoint.memory)}
    for name, share in adapter.held.items():
        if _takes_part(job, share):
            for row, values in _sent(job, share, arrays.get(name)):
                adapter.set_rows(name, row, values)
    if checkpoint and adapter.update_config:
        adapter.set_applied_steps(checkpoint.optimizer_state.applied_steps)


def _takes_part(job: Job, share: Share) -> bool:
    """Whether this rank is in the group of rank 0 that divides the parameter."""
    return job.groups[share.divided_over].ranks[0] == 0 if share.divided_over else job.topology.is_writer


def _tensors(job: Job, shares: Mapping[str, Share], arrays: Mapping[str, Array]) -> Tensors:
    def pieces() -> Iterator[Piece]:
        for name, share in shares.items():
            if _takes_part(job, share):
                for row, values in _gathered(job, share, arrays.get(name)):
                    yield name, row, values

    return Tensors({name: share.parameter.shape for name, share in shares.items()}, pieces())


def _gathered(job: Job, share: Share, own: Array | None) -> Iterator[tuple[int, Array]]:
    """First row and rows of every block, on the first rank; nothing on the others. Collective over the group."""
    if share.divided_over is None:
        assert own is not None
        yield 0, own
        return
    for blocks_of_parts in rounds(share):
        mine = blocks_of_parts[share.place]
        if share.place == 0:
            yield from ((mine.start, _rows(share, own, mine)) for _ in mine[:1])
            mine = range(0)
        sent = _rows(share, own, mine)
        received, counts = job.exchange(sent, _to(0, share, len(mine)), share.divided_over)
        if share.place == 0:
            parts = np.split(received, np.cumsum(counts)[:-1])
            yield from ((block.start, part) for block, part in zip(blocks_of_parts, parts, strict=True) if len(part))


def _sent(job: Job, share: Share, whole: Rows | None) -> Iterator[tuple[int, Array]]:
    """First row and rows of this rank's blocks of `whole`, which only the first rank has. Collective over the group."""
    if share.divided_over is None:
        assert whole is not None
        for block in blocks(share.rows, share.shape):
            yield block.start, np.ascontiguousarray(whole[block.start : block.stop])
        return
    for blocks_of_parts in rounds(share):
        mine, splits = blocks_of_parts[share.place], [0] * len(share.parts)
        sent = np.zeros((0, *share.shape[1:]), np.float32)
        if share.place == 0:
            assert whole is not None
            yield from ((mine.start, np.ascontiguousarray(whole[mine.start : mine.stop])) for _ in mine[:1])
            others = blocks_of_parts[1:]
            splits[1:] = map(len, others)
            sent = np.concatenate([sent, *(whole[block.start : block.stop] for block in others)])
        received, _ = job.exchange(sent, splits, share.divided_over)
        if len(received):
            yield mine.start, received


def _rows(share: Share, own: Array | None, block: range) -> Array:
    if own is None or not block:
        return np.zeros((0, *share.shape[1:]), np.float32)
    return np.ascontiguousarray(own[block.start - share.rows.start : block.stop - share.rows.start])


def _to(place: int, share: Share, count: int) -> list[int]:
    return [count if other == place else 0 for other in range(len(share.parts))]
