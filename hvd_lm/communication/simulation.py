"""Horovod's background thread, simulated: tensors become ready, are negotiated in cycles, fused, and served one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hvd_lm.communication.gradients import Sent
from hvd_lm.communication.ring import CollectiveName

Service = Callable[[float, str, CollectiveName], float]
"""Seconds of an operation of so many bytes in a number format."""


@dataclass(frozen=True)
class Served:
    """One operation of the link, on one tensor or several that were fused."""

    tensors: tuple[str, ...]
    begun: float
    """Seconds since the last backward of the window began."""
    done: float


class HorovodsThread:
    """As it goes on: what is submitted to it is served in turns.

    A turn begins when a tensor is there, no less than `cycle` seconds after the one before began; it negotiates for `negotiation`
    seconds, then serves all that were ready when it began. Neighbours of one operation and number format are fused as long as they
    have no more than `fusion_bytes` together.
    """

    def __init__(self, service: Service, *, negotiation: float = 0.0, cycle: float = 0.0, fusion_bytes: float = 0.0) -> None:
        self._service, self._negotiation, self._cycle, self._fusion_bytes = service, negotiation, cycle, fusion_bytes
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
            seconds = self._service(sum(tensor.size for tensor in group), group[0].number_format, group[0].collective)
            begun, self._now = self._now, self._now + seconds
            self.operations.append(Served(tuple(tensor.name for tensor in group), begun, self._now))
            self.done |= {tensor.name: self._now for tensor in group}


def simulate(
    tensors: Sequence[Sent], service: Service, *, negotiation: float = 0.0, cycle: float = 0.0, fusion_bytes: float = 0.0
) -> tuple[Served, ...]:
    """The operations of a window, in order, by `HorovodsThread`."""
    thread = HorovodsThread(service, negotiation=negotiation, cycle=cycle, fusion_bytes=fusion_bytes)
    for tensor in sorted(tensors, key=lambda tensor: tensor.ready):
        thread.submit(tensor)
    while thread.next_turn < math.inf:
        thread.take_turn()
    return tuple(thread.operations)


def _fused(tensors: Sequence[Sent], fusion_bytes: float) -> list[list[Sent]]:
    groups: list[list[Sent]] = []
    for tensor in tensors:
        last = groups[-1] if groups and fusion_bytes else None
        is_like = last and (last[0].number_format, last[0].collective) == (tensor.number_format, tensor.collective)
        if last and is_like and sum(t.size for t in [*last, tensor]) <= fusion_bytes:
            last.append(tensor)
        else:
            groups.append([tensor])
    return groups


def served_in_turn(tensors: Sequence[Sent], service: Service) -> float:
    """When the last one is done, in closed form: no negotiation, no cycle, no fusion.

    Each waits for its turn (Lindley 1952): the largest, over all of them, of when it is ready and what it and the later ones take.
    A second message is taken to be ready with the first: a lower bound.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.ready)
    latest, rest = 0.0, 0.0
    for tensor in reversed(ordered):
        rest += service(tensor.size, tensor.number_format, tensor.collective)
        rest += service(tensor.second, tensor.number_format, tensor.collective) if tensor.second else 0.0
        latest = max(latest, tensor.ready + rest)
    return latest
