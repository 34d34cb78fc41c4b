"""Closed forms: seconds of a collective operation among n ranks, of which each step takes alpha and each byte beta seconds.

After Thakur, Rabenseifner & Gropp 2005, "Optimization of Collective Communication Operations in MPICH", without the additions
themselves, and Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

CollectiveName = Literal["allreduce", "allgather", "broadcast", "alltoall", "reducescatter"]
COLLECTIVES: tuple[CollectiveName, ...] = ("allreduce", "allgather", "broadcast", "alltoall", "reducescatter")


class Course(NamedTuple):
    """What a rank does for an operation."""

    steps: float
    """Messages one after the other, each alpha."""
    volume: float
    """Bytes that its link carries in turn, as a multiple of those of the operation, each beta."""

    def seconds(self, size: float, alpha: float, beta: float) -> float:
        """Of an operation of `size` bytes."""
        return self.steps * alpha + self.volume * size * beta


NOTHING = Course(0, 0)
"""Of a rank alone."""


def course(collective: CollectiveName, ranks: int) -> Course:
    """The usual way of a collective: rings; of a broadcast a tree; of an all-to-all pairs.

    The bytes are those of the whole vector: in an all-gather and a reduce-scatter a rank has its n-th part.
    """
    if ranks == 1:
        return NOTHING
    around = Course(ranks - 1, (ranks - 1) / ranks)
    if collective == "allreduce":
        return ring(ranks)
    if collective == "broadcast":
        levels = math.ceil(math.log2(ranks))
        return Course(levels, levels)
    return around


def ring(ranks: int) -> Course:
    """All-reduce: 2(n-1) alpha + 2(n-1)/n bytes beta."""
    return Course(2 * (ranks - 1), 2 * (ranks - 1) / ranks)


def recursive_doubling(ranks: int) -> Course:
    """All-reduce: log2(n) (alpha + bytes beta); two steps more to fold ranks in and out where n is no power of two."""
    levels = math.floor(math.log2(ranks))
    levels += 0 if ranks == 2**levels else 2
    return Course(levels, levels)


def halving_doubling(ranks: int) -> Course:
    """All-reduce (Rabenseifner 2004): 2 log2(n) alpha + 2(n-1)/n bytes beta; folding as in `recursive_doubling`."""
    levels = math.floor(math.log2(ranks))
    power = 2**levels
    folded = 0 if ranks == power else 2
    return Course(2 * levels + folded, 2 * (power - 1) / power + folded)


def hierarchical_seconds(
    size: float, hosts: int, of_a_host: int, inside: tuple[float, float], between: tuple[float, float]
) -> float:
    """All-reduce in three: a reduce-scatter in each host, rings of the n-th parts between the hosts, an all-gather in each host.

    `inside` and `between`: alpha and beta there. The rings of a host's ranks share its way out: together they carry all bytes.
    """
    around = course("allgather", of_a_host)
    return 2 * around.seconds(size, *inside) + (ring(hosts) if hosts > 1 else NOTHING).seconds(size, *between)


def bandwidth_bound(size: float, ranks: int, beta: float) -> float:
    """What no all-reduce is below, whatever its way: a rank sends, and receives, 2(n-1)/n of the bytes."""
    return 2 * (ranks - 1) / ranks * size * beta
