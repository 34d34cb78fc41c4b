"""Gradients on their way: each leaves as soon as the last backward of a window has completed it.

Horovod's DistributedOptimizer does the same by counting backwards; here the loop says which one is the last, so that a short window
needs no other counter, Adasum takes the same way, and clipping sits between reduction and update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import horovod.torch as hvd
import torch
from torch import Tensor, nn

from hvd_lm.adapters.job import Group, Job
from hvd_lm.adapters.pytorch.compressed import Compressed
from hvd_lm.adapters.pytorch.optimizer_split import OptimizerSplit
from hvd_lm.adapters.pytorch.touched_rows import Touched
from hvd_lm.config import CommunicationConfig
from hvd_lm.model.split import Share

_BLOCK = 1 << 18
"""Values that are cast at a time; as halves and as floats they fit a cache."""


def to_halves_in_place(gradient: Tensor) -> Tensor:
    """`gradient` in float16, in the first half of its own memory: fresh memory would cost three times as much as the cast."""
    values = gradient.view(-1)
    halves = values.view(torch.float16)[: len(values)]
    for start in range(0, len(values), _BLOCK):
        halves[start : start + _BLOCK] = values[start : start + _BLOCK].half()
    return halves


def from_halves_in_place(gradient: Tensor) -> None:
    """The inverse of `to_halves_in_place`; from the end, where no half is overwritten that is still to be read."""
    values = gradient.view(-1)
    halves = values.view(torch.float16)[: len(values)]
    for start in reversed(range(0, len(values), _BLOCK)):
        values[start : start + _BLOCK] = halves[start : start + _BLOCK].float()


@dataclass
class _Reduction:
    """One gradient on its way."""

    name: str
    gradient: Tensor
    """Where it will be: of the parameter, or of the rows that this rank updates."""
    arrive: Callable[[], None]
    """Waits for it."""
    poll: Callable[[], None]
    """Sends what is to be sent next, if that can be told."""


class GradientReducer:
    """Starts Horovod's all-reduce of each gradient, over the ranks that hold its parameter.

    Of a looked-up parameter only those rows travel that the window touched on some rank.
    """

    def __init__(
        self,
        shares: Mapping[str, Share],
        weights: Mapping[str, nn.Parameter],
        touched: Touched,
        optimizer_split: OptimizerSplit,
        job: Job,
        communication: CommunicationConfig,
        compressed: Compressed | None,
    ) -> None:
        """Of what `optimizer_split` divides, a rank gets the sum of the rows that it updates."""
        self._compressed = compressed
        self._optimizer_split = optimizer_split
        self._names = {weight: name for name, weight in weights.items()}
        self._groups = {name: job.holders(share) for name, share in shares.items()}
        self._op = hvd.Adasum if communication.reduction == "adasum" else hvd.Sum
        self._fp16 = communication.compression == "fp16"
        self._everyone = job.groups["all"]
        self._sums_handle: int | None = None
        self._touched, self._bytes_of_rows = touched.by_name, touched.bytes_sent
        self._communication, self._applied_steps = communication, 0
        self.waited_seconds = 0.0
        """For gradients of the window, after its backward."""
        self.bytes_sent = 0
        """Of gradients of the window, and of what says which rows of them there are."""
        self.pending: list[_Reduction] = []
        """In the order in which they started."""

    def start_sums(self, sums: Tensor, applied_steps: int, *, tells: bool) -> None:
        """Sum the loss, and what travels beside it, over all ranks, in place, after so many optimizer steps. Of a step of a rank's
        own the loss stays, and all of it where such a step `tells` nothing. Collective."""
        self._applied_steps, self.waited_seconds = applied_steps, 0.0
        is_local = self._communication.is_local(applied_steps)
        self.bytes_sent = 0 if is_local else self._bytes_of_rows
        if tells or not is_local:
            process_set, told = self._everyone.process_set, sums[1:] if is_local else sums
            self._sums_handle = hvd.allreduce_async_(told, name="loss", op=hvd.Sum, process_set=process_set)

    @property
    def _compressing(self) -> Compressed | None:
        """In this window."""
        is_exact = self._compressed is None or self._applied_steps < self._compressed.exact_steps
        return None if is_exact else self._compressed

    def start(self, weight: nn.Parameter) -> None:
        """Its gradient of the window is complete. Collective."""
        name, gradient = self._names[weight], weight.grad
        assert gradient is not None
        group, poll = self._groups[name], _nothing
        for earlier in self.pending:
            earlier.poll()
        if not group.communicates or self._communication.is_local(self._applied_steps):
            arrive = _nothing
        elif self._compressing and name in self._compressing.names:
            rows = self._rows(name) if name in self._touched else None
            compressed = self._compressing.start(name, gradient, rows, partial(self._send, group))
            arrive, poll = compressed.arrive, compressed.poll
        elif name in self._touched:
            arrive = self._start_rows(name, gradient)
        elif name in self._optimizer_split.divided:
            self.bytes_sent += gradient.nbytes // (2 if self._fp16 else 1)
            arrive, gradient = self._optimizer_split.start_sum(name, gradient), self._optimizer_split.rows_of(name, gradient)
        else:
            wire = to_halves_in_place(gradient) if self._fp16 else gradient
            handle = self._send(group, wire, f"gradient.{name}")
            arrive = partial(_arrive_in_place, handle, gradient if self._fp16 else None)
        self.pending.append(_Reduction(name, gradient, arrive, poll))

    def backward_complete(self) -> None:
        """All gradients of the window have started. Collective."""
        if self._compressing:
            self._compressing.backward_complete(self._applied_steps, self._gather)

    def _gather(self, wire: Tensor, name: str) -> int:
        """That of all ranks, one after the other; the handle."""
        self.bytes_sent += wire.nbytes
        handle: int = hvd.allgather_async(wire, name=name, process_set=self._everyone.process_set)
        return handle

    def _send(self, group: Group, wire: Tensor, name: str) -> int:
        """Sum `wire` over the group, in place; the handle."""
        self.bytes_sent += wire.nbytes
        handle: int = hvd.allreduce_async_(wire, name=name, op=self._op, process_set=group.process_set)
        return handle

    def _rows(self, name: str) -> Tensor:
        """That were touched on any rank."""
        began = time.perf_counter()
        rows = self._touched[name].rows()
        self.waited_seconds += time.perf_counter() - began
        return rows

    def _start_rows(self, name: str, gradient: Tensor) -> Callable[[], None]:
        """Of the rows that were touched."""
        rows = self._rows(name)
        wire = gradient.index_select(0, rows)
        wire = wire.half() if self._fp16 else wire
        handle = self._send(self._groups[name], wire, f"gradient.{name}")

        def arrive() -> None:
            hvd.synchronize(handle)
            gradient.index_copy_(0, rows, wire.to(gradient.dtype))

        return arrive

    def finish_sums(self) -> None:
        """They are there; nothing if they did not leave."""
        if self._sums_handle is not None:
            began = time.perf_counter()
            hvd.synchronize(self._sums_handle)
            self._sums_handle = None
            self.waited_seconds += time.perf_counter() - began

    def finish(self) -> Iterator[tuple[str, Tensor]]:
        """The gradients that are on their way, one by one as they come in; what is done with one hides what the next one takes."""
        for place, reduction in enumerate(self.pending):
            for later in self.pending[place + 1 :]:
                later.poll()
            began = time.perf_counter()
            reduction.arrive()
            self.waited_seconds += time.perf_counter() - began
            yield reduction.name, reduction.gradient
        self.pending.clear()


def _nothing() -> None:
    """Of a gradient that no other rank has a part in."""


def _arrive_in_place(handle: int, halves: Tensor | None) -> None:
    """`halves`: the gradient, if it travelled as such."""
    hvd.synchronize(handle)
    if halves is not None:
        from_halves_in_place(halves)
