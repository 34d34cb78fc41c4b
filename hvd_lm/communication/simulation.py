"""Horovod's background thread, simulated: tensors become ready, are negotiated in cycles, fused, and served one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hvd_lm.communication.gradients import Sent

Service = Callable[[float, str], float]
"""Seconds of an operation of so many bytes in a number format."""


@dataclass(frozen=True)
class Served:
    """One operation of the link, on one tensor or several that were fused."""

    tensors: tuple[str, ...]
    begun: float
    """Seconds since the last backward of the window began."""
    done: float


def simulate(
    tensors: Sequence[Sent], service: Service, *, negotiation: float = 0.0, cycle: float = 0.0, fusion_bytes: float = 0.0
) -> tuple[Served, ...]:
    """The operations of a window, in order.

    A turn of the thread begins when a tensor is there, no less than `cycle` seconds after the one before began; it negotiates for
    `negotiation` seconds, then serves all that were ready when it began. Neighbours of one number format are fused as long as they
    have no more than `fusion_bytes` together.
    """
    waiting = sorted(tensors, key=lambda tensor: tensor.ready)
    found: list[Served] = []
    now, turn = 0.0, -cycle
    while waiting:
        turn = max(now, waiting[0].ready, turn + cycle)
        ready = [tensor for tensor in waiting if tensor.ready <= turn]
        waiting = waiting[len(ready) :]
        now = turn + negotiation
        for group in _fused(ready, fusion_bytes):
            begun, now = now, now + service(sum(tensor.size for tensor in group), group[0].number_format)
            found.append(Served(tuple(tensor.name for tensor in group), begun, now))
    return tuple(found)


def _fused(tensors: Sequence[Sent], fusion_bytes: float) -> list[list[Sent]]:
    groups: list[list[Sent]] = []
    for tensor in tensors:
        last = groups[-1] if groups and fusion_bytes else None
        if last and last[0].number_format == tensor.number_format and sum(t.size for t in [*last, tensor]) <= fusion_bytes:
            last.append(tensor)
        else:
            groups.append([tensor])
    return groups


def served_in_turn(tensors: Sequence[Sent], service: Service) -> float:
    """When the last one is done, in closed form: no negotiation, no cycle, no fusion.

    Each waits for its turn (Lindley 1952): the largest, over all of them, of when it is ready and what it and the later ones take.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.ready)
    latest, rest = 0.0, 0.0
    for tensor in reversed(ordered):
        rest += service(tensor.size, tensor.number_format)
        latest = max(latest, tensor.ready + rest)
    return latest
