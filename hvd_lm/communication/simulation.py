"""Horovod's background thread, simulated: tensors become ready, are negotiated in cycles, fused, and served one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hvd_lm.communication.gradients import Sent
from hvd_lm.communication.link import Link
from hvd_lm.communication.ring import CollectiveName

Service = Callable[[float, str, CollectiveName, int], float]
"""Seconds of an operation of so many bytes in a number format, of so many ranks (0: of all)."""
_FUSED: tuple[CollectiveName, ...] = ("allreduce", "allgather")
"""What Horovod fuses."""


def service_of(link: Link, ranks: int) -> Service:
    """Of a job of so many ranks, of operations of which nothing but their size is known."""
    return lambda size, number_format, collective, among: link.seconds(collective, size, among or ranks, number_format)


@dataclass(frozen=True)
class Served:
    """One operation of the link, on one tensor or several that were fused."""

    tensors: tuple[str, ...]
    begun: float
    """Seconds since the last backward of the window began."""
    done: float


def stretched(seconds: float, begun: float, busy_until: float, rate: float) -> float:
    """What `seconds` of work last that begin at `begun` and go at `rate` until `busy_until`, then at 1."""
    busy = max(0.0, busy_until - begun)
    return seconds / rate if seconds <= busy * rate else busy + seconds - busy * rate


def overlap(operations: Sequence[Served], until: float) -> float:
    """Seconds before `until` in which one of them is under way."""
    return sum(max(0.0, min(served.done, until) - served.begun) for served in operations)


class HorovodsThread:
    """As it goes on: what is submitted to it is served in turns.

    A turn begins when a tensor is there, no less than `cycle` seconds after the one before began; it negotiates for `negotiation`
    seconds, then serves all that were ready when it began. Neighbours of one operation and number format are fused as long as they
    have no more than `fusion_bytes` together. Until `busy_until`, while the rank computes, an operation goes at `rate`.
    """

    def __init__(
        self,
        service: Service,
        *,
        negotiation: float = 0.0,
        cycle: float = 0.0,
        fusion_bytes: float = 0.0,
        busy_until: float = 0.0,
        rate: float = 1.0,
    ) -> None:
        self._service, self._negotiation, self._cycle, self._fusion_bytes = service, negotiation, cycle, fusion_bytes
        self._busy_until, self._rate = busy_until, rate
        self._waiting: list[Sent] = []
        self._now, self._turn = 0.0, -cycle
        self.operations: list[Served] = []
        """In order."""
        self.done: dict[str, float] = {}
        """When each tensor was, by name."""

    def submit(self, tensor: Sent) -> None:
        """It is ready no sooner than those before it."""
        self._waiting.append(tensor)

    @property
    def next_turn(self) -> float:
        """When it begins, unless something else is submitted before; infinite where nothing waits."""
        return max(self._now, self._waiting[0].ready, self._turn + self._cycle) if self._waiting else math.inf

    def take_turn(self) -> None:
        """The next one, to its end. Something must wait."""
        self._turn = self.next_turn
        ready = [tensor for tensor in self._waiting if tensor.ready <= self._turn]
        self._waiting = self._waiting[len(ready) :]
        self._now = self._turn + self._negotiation
        for group in _fused(ready, self._fusion_bytes):
            alone = self._service(sum(tensor.size for tensor in group), *_kind(group[0]))
            begun, self._now = self._now, self._now + stretched(alone, self._now, self._busy_until, self._rate)
            self.operations.append(Served(tuple(tensor.name for tensor in group), begun, self._now))
            self.done |= {tensor.name: self._now for tensor in group}

    def serve(self, tensors: Iterable[Sent]) -> None:
        """All of them, and what waits, in the order in which they are ready."""
        for tensor in sorted(tensors, key=lambda tensor: tensor.ready):
            self.submit(tensor)
        while self.next_turn < math.inf:
            self.take_turn()


class TrainingThread:
    """The thread that trains: it works, and gives Horovod's thread what is to travel."""

    def __init__(self, horovod: HorovodsThread) -> None:
        self._horovod = horovod
        self.now, self.waited = 0.0, 0.0
        """Seconds since it began, and those of them in which it waited."""

    @property
    def done(self) -> Mapping[str, float]:
        """When what has travelled was there, by name."""
        return self._horovod.done

    def work(self, seconds: float) -> None:
        self.now += seconds

    def start(self, tensor: Sent) -> None:
        """It leaves now; nothing else that is on its way has its name."""
        self._horovod.submit(replace(tensor, ready=self.now))

    def wait(self, name: str) -> None:
        while name not in self.done:
            self._horovod.take_turn()
        self.waited += max(0.0, self.done[name] - self.now)
        self.now = max(self.now, self.done[name])

    def exchange(self, tensor: Sent) -> None:
        """It leaves now, and nothing is done until it is there."""
        self.start(tensor)
        self.wait(tensor.name)


def simulate(
    tensors: Sequence[Sent], service: Service, *, negotiation: float = 0.0, cycle: float = 0.0, fusion_bytes: float = 0.0
) -> tuple[Served, ...]:
    """The operations of a window, in order, by `HorovodsThread`."""
    thread = HorovodsThread(service, negotiation=negotiation, cycle=cycle, fusion_bytes=fusion_bytes)
    thread.serve(tensors)
    return tuple(thread.operations)


def _fused(tensors: Sequence[Sent], fusion_bytes: float) -> list[list[Sent]]:
    groups: list[list[Sent]] = []
    for tensor in tensors:
        last = groups[-1] if groups and fusion_bytes else None
        is_like = last and tensor.collective in _FUSED and _kind(last[0]) == _kind(tensor)
        if last and is_like and sum(t.size for t in [*last, tensor]) <= fusion_bytes:
            last.append(tensor)
        else:
            groups.append([tensor])
    return groups


def _kind(tensor: Sent) -> tuple[str, CollectiveName, int]:
    return tensor.number_format, tensor.collective, tensor.ranks


def served_in_turn(tensors: Sequence[Sent], service: Service) -> float:
    """When the last one is done, in closed form: no negotiation, no cycle, no fusion.

    Each waits for its turn (Lindley 1952): the largest, over all of them, of when it is ready and what it and the later ones take.
    A second message is taken to be ready with the first: a lower bound.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.ready)
    latest, rest = 0.0, 0.0
    for tensor in reversed(ordered):
        rest += service(tensor.size, *_kind(tensor))
        rest += service(tensor.second, *_kind(tensor)) if tensor.second else 0.0
        latest = max(latest, tensor.ready + rest)
    return latest
