"""Replicas: every rank updates its own copy of the model, and nothing that it does would show that a copy has come apart."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from hvd_lm.adapters.base import Adapter
from hvd_lm.model.weights import Weights

ROUNDING = 1e-3
"""Largest relative difference that unlike processors, or numbers of threads, make in a run."""


def mend(adapter: Adapter) -> dict[int, float]:
    """Where the weights of any two ranks are not the same bits, give all ranks those of rank 0, and its moments.

    Returns how far each rank was off, for those that were: the largest ``|weight - rank 0's| / |rank 0's|`` (norms) of its weights.
    Where rank 0's are no numbers, rank 0 is off, infinitely, and nobody is given anything. Collective.
    """
    job = adapter.job
    if not job.groups["all"].communicates or _alike(adapter):
        return {}
    if not is_finite(adapter):
        return {0: math.inf}
    before = adapter.weights()
    adapter.broadcast_state()
    distances = job.tell(distance(before, adapter.weights(copy=False)))
    return {rank: found for rank, found in enumerate(distances) if found}


def described(distances: Mapping[int, float], places: Sequence[str]) -> str:
    """Whose weights `mend` has found to be off, and how far."""
    whose = ", ".join(places[rank] for rank in distances)
    if 0 in distances:
        return f"{whose} are no numbers any more"
    return f"{whose} were not those of rank 0 (relative difference {max(distances.values()):.1e})"


def _alike(adapter: Adapter) -> bool:
    """Whether all ranks have the same bits of what they hold in common. Collective."""
    weights, model_size = adapter.weights(copy=False), adapter.job.topology.model_size
    divided = {name: array for name, array in weights.items() if adapter.shares[name].divided_over}
    common = {name: array for name, array in weights.items() if name not in divided}
    told = adapter.job.tell((checksum(common), checksum(divided)))
    of_all = {of_common for of_common, _ in told}
    # Ranks of one model rank hold the same rows.
    of_rows = {(rank % model_size, of_divided) for rank, (_, of_divided) in enumerate(told)}
    return len(of_all) == 1 and len(of_rows) == model_size


def is_finite(adapter: Adapter) -> bool:
    """Whether the weights that a checkpoint would hold are numbers: those of rank 0's model group. Collective."""
    mine = all(bool(np.isfinite(array).all()) for array in adapter.weights(copy=False).values())
    return bool(adapter.job.tell(all(adapter.job.tell(mine, "model")))[0])


def checksum(weights: Weights) -> int:
    """CRC-32 of all bits."""
    found = 0
    for array in weights.values():
        found = zlib.crc32(np.ascontiguousarray(array).data, found)
    return found


def distance(weights: Weights, reference: Weights) -> float:
    """The largest over the names; infinite where it is not a number."""
    tiny = np.finfo(np.float32).tiny
    found = [
        np.linalg.norm(array - reference[name]) / max(np.linalg.norm(reference[name]), tiny) for name, array in weights.items()
    ]
    return float(np.nan_to_num(np.max(found), nan=np.inf))
