"""What a step is made of, however the model is arranged, and what those who predict it share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hvd_lm.communication.compute import micro_batches_together
from hvd_lm.communication.contention import Rates
from hvd_lm.communication.gradients import Sent
from hvd_lm.communication.link import Compute, Link
from hvd_lm.communication.measure import Work
from hvd_lm.communication.ring import bandwidth_bound, course
from hvd_lm.communication.simulation import HorovodsThread, Served, Service, service_of

HOROVODS_CYCLE = 1e-3
"""Seconds; what Horovod takes unless told otherwise."""


@dataclass(frozen=True)
class Parts:
    """Of a step on the rank that takes longest, in seconds. A step is the first nine, one after the other."""

    forward: float
    """Of all micro-batches."""
    backward: float
    """Of all micro-batches."""
    update: float
    exposed: float
    """Of the reduction of gradients, after the last backward."""
    contention: float = 0.0
    """That forwards and backwards take longer, as communication takes of their cores."""
    compression: float = 0.0
    exchange: float = 0.0
    """That the rank waits for others of its model group, within forwards and backwards."""
    averaging: float = 0.0
    sharing: float = 0.0
    """To give the others what this rank has updated for them."""
    hidden: float = 0.0
    """Communication beside the last backward, and beside compression."""
    communication: float = 0.0
    """Of all operations."""
    last_backward: float = 0.0
    closed_form_exposed: float = 0.0
    operations: tuple[Served, ...] = ()
    """Of the last backward."""
    travels: tuple[tuple[Sent, float], ...] = ()
    """All that leaves the rank, and how often in a step."""

    @property
    def step(self) -> float:
        compute = self.forward + self.backward + self.contention + self.compression + self.update
        return compute + self.exchange + self.exposed + self.averaging + self.sharing


@dataclass(frozen=True)
class Windows:
    """How many micro-batches share each backward of a window, in their order, and what forwards and backwards take."""

    compute: Compute
    together: tuple[int, ...]

    @property
    def micro_batches(self) -> int:
        return sum(self.together)

    @property
    def forward(self) -> float:
        """Of all micro-batches."""
        return self.micro_batches * self.compute.forward

    def backward_of(self, micro_batches: int) -> float:
        """That so many share."""
        return self.compute.backward_base + micro_batches * self.compute.backward

    @property
    def backward(self) -> float:
        """Of all micro-batches."""
        return sum(map(self.backward_of, self.together))

    @property
    def last_backward(self) -> float:
        return self.backward_of(self.together[-1])

    @property
    def alone(self) -> float:
        """A step of a rank that has nobody to talk to."""
        return self.forward + self.backward + self.compute.update


def windows(compute: Compute, work: Work) -> Windows:
    """Of a step of `work`."""
    count, together = work.communication.backward_passes_per_step, micro_batches_together(work.data, work.communication)
    # Those of a window that fill no backward go first.
    first = [count % together] if count % together else []
    return Windows(compute, (*first, *[together] * (count // together)))


def rates_of(link: Link, work: Work) -> Rates:
    """Of compute and communication in a window."""
    its = work.communication
    is_halves = its.compression == "fp16" or (its.compression == "powersgd" and its.powersgd_halves)
    return link.rates("float16" if is_halves else "float32")


def service_of_window(link: Link, work: Work, ranks: int) -> Service:
    """`service_of`, of all gradients, or weights, of a model."""
    service, rate = service_of(link, ranks), rates_of(link, work).alone
    return lambda size, number_format, collective, among: service(size, number_format, collective, among) / rate


def thread_of(link: Link, work: Work, service: Service, ranks: int, busy_until: float = 0.0) -> HorovodsThread:
    """Horovod's, on one of so many ranks, which computes until then."""
    communication, rates = work.communication, rates_of(link, work)
    return HorovodsThread(
        service,
        negotiation=link.negotiation(ranks),
        cycle=HOROVODS_CYCLE if communication.cycle_time_ms is None else communication.cycle_time_ms / 1e3,
        fusion_bytes=(communication.fusion_threshold_mb or 0) * 2.0**20,
        busy_until=busy_until,
        rate=rates.beside / rates.alone,
    )


def one_after_the_other(tensors: Sequence[Sent], thread: HorovodsThread) -> float:
    """Seconds until all are served that leave together."""
    thread.serve(replace(tensor, ready=0.0) for tensor in tensors)
    return thread.operations[-1].done if tensors else 0.0


def volume(one: Sent, ranks: int) -> float:
    """Bytes that leave each rank of a job of so many."""
    among = one.ranks or ranks
    if one.collective == "allreduce":
        return bandwidth_bound(one.size + one.second, among, 1.0)
    return course(one.collective, among).volume * one.size
