"""Messages between every two ranks, by mpi4py where MPI launches: what they take inside a host and between hosts, and where one of
the hosts, or one cable, is slower than the others.

Shapes: n ranks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvd_lm.adapters.job import Job
from hvd_lm.job import point_to_point

_SMALL, _LARGE = 2**10, 2**20
"""Bytes; a link may let less pass faster than it can go on."""
_TIMES = {_SMALL: 40, _LARGE: 4}
"""How often each goes there and back."""
_SLOW = 1.5
"""A large message is slow that takes so many times as long as those of the quickest quarter."""

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Pairs:
    """What a message takes one way, between every two ranks; 0 from a rank to itself."""

    hosts: tuple[str, ...]
    """Of each rank."""
    alphas: Matrix
    """[n, n], seconds of a small one."""
    betas: Matrix
    """[n, n], seconds a byte besides."""

    def median(self, *, inside: bool) -> tuple[float, float] | None:
        """alpha and beta of two ranks of one host, or of two hosts; None if there are no such two."""
        chosen = [pair for pair in _pairs(len(self.hosts)) if self._is_inside(*pair) == inside]
        if not chosen:
            return None
        alpha, beta = (float(np.median([matrix[a][b] for a, b in chosen])) for matrix in (self.alphas, self.betas))
        return alpha, beta

    def slow(self) -> list[str]:
        """What is slower than the others, in words: hosts and ranks all of whose messages are, then single pairs of ranks."""
        found: list[str] = []
        for inside in (False, True):
            found += self._slow_among({pair for pair in _pairs(len(self.hosts)) if self._is_inside(*pair) == inside})
        return found

    def _is_inside(self, a: int, b: int) -> bool:
        return self.hosts[a] == self.hosts[b]

    def _slow_among(self, pairs: set[tuple[int, int]]) -> list[str]:
        if len(pairs) < 3:
            return []
        seconds = {(a, b): self.alphas[a][b] + _LARGE * self.betas[a][b] for a, b in pairs}
        quick = float(np.quantile(list(seconds.values()), 0.25, method="lower"))
        times = {pair: its / quick for pair, its in seconds.items() if its > _SLOW * quick}
        groups = [
            (f"host {host}", {rank for rank, of in enumerate(self.hosts) if of == host}) for host in dict.fromkeys(self.hosts)
        ]
        groups += [(f"rank {rank} on {host}", {rank}) for rank, host in enumerate(self.hosts)]
        as_others = "times as long as others"
        said, explained = [], set[tuple[int, int]]()
        for name, ranks in groups:
            of_group = {pair for pair in pairs if ranks & set(pair)}
            # If all are slow, who of them is to blame cannot be told.
            if of_group and of_group != pairs and of_group <= times.keys() and not of_group <= explained:
                said.append(f"{name}: messages to and from it take {_median(times, of_group):.1f} {as_others}")
                explained |= of_group
        said += [
            f"rank {a} on {self.hosts[a]} and rank {b} on {self.hosts[b]}: messages between them take {its:.1f} {as_others}"
            for (a, b), its in sorted(times.items())
            if (a, b) not in explained
        ]
        return said

    def lines(self) -> list[str]:
        """What a person reads."""
        found = []
        for name, inside in (("inside a host", True), ("between hosts", False)):
            if its := self.median(inside=inside):
                alpha, beta = its
                rate = f"{1e-6 / beta:,.0f} MB/s" if beta else "no limit of the bandwidth seen"
                found.append(f"messages {name}: {alpha * 1e6:.0f} us, {rate}")
        return found + [f"slow: {what}" for what in self.slow()]


def time_pairs(job: Job) -> Pairs | None:
    """Of all ranks of `job`; None where they cannot send to each other. Collective."""
    if any(job.tell(point_to_point.obstacle(job.horovod))):
        return None
    everyone, rank, size = point_to_point.communicator(), job.topology.rank, job.topology.size
    own_2n = np.zeros((2, size))
    for other in _opponents(rank, size):
        job.barrier()
        if other is not None:
            link = point_to_point.Link(everyone, other, 0.0)
            small, large = (_there_and_back(job, link, bytes_, begins=rank < other) for bytes_ in (_SMALL, _LARGE))
            own_2n[:, other] = small, max(0.0, large - small) / (_LARGE - _SMALL)
    found_n2n = job.gather(own_2n, "all")
    # Both ranks have timed the same messages.
    alphas_nn, betas_nn = ((found_n2n[:, kind] + found_n2n[:, kind].T) / 2 for kind in range(2))
    return Pairs(tuple(job.hosts), _matrix(alphas_nn), _matrix(betas_nn))


def _there_and_back(job: Job, link: point_to_point.Link, size: int, *, begins: bool) -> float:
    """Seconds of one way; lower quartile, as what else a machine does only ever adds to it."""
    values, seconds = np.zeros(size, np.uint8), []
    for _ in range(_TIMES[size]):
        job.watch.sign()
        began = time.perf_counter()
        if begins:
            link.send(values, "activations")
            link.receive(np.empty_like(values), "gradients")
        else:
            link.receive(np.empty_like(values), "activations")
            link.send(values, "gradients")
        seconds.append((time.perf_counter() - began) / 2)
    return float(np.quantile(seconds, 0.25))


def _opponents(rank: int, size: int) -> Iterator[int | None]:
    """With whom `rank` plays in each round of a tournament in which every two meet once; None if it rests."""
    seats = size + size % 2
    for turn in range(seats - 1):
        order = [0, *(1 + (turn + place) % (seats - 1) for place in range(seats - 1))]
        other = order[seats - 1 - order.index(rank)]
        yield other if other < size else None


def _pairs(size: int) -> Iterator[tuple[int, int]]:
    return ((a, b) for a in range(size) for b in range(a + 1, size))


def _median(times: dict[tuple[int, int], float], pairs: set[tuple[int, int]]) -> float:
    return float(np.median([times[pair] for pair in pairs]))


def _matrix(values_nn: NDArray[np.float64]) -> Matrix:
    rows: Sequence[Sequence[float]] = values_nn.tolist()
    return tuple(map(tuple, rows))
