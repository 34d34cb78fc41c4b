"""The ends of a rank's stages in a pipeline: activations arrive from the rank below and depart to the one above, gradients the
other way.

What departs does not wait: the rank goes on with its next micro-batch while the one above works on this one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque

import horovod.torch as hvd
import torch
from torch import Tensor

from hvd_lm.adapters.job import Group
from hvd_lm.adapters.pytorch.stages.base import Complete, LayerState, Stage
from hvd_lm.adapters.pytorch.stages.sampled_softmax import SampledWords
from hvd_lm.adapters.pytorch.wire import Wire
from hvd_lm.job.point_to_point import Kind, Link

_NAMES = 64
"""Sendings in one direction that may be on their way together, each under a name of its own."""


class Neighbour(ABC):
    """The rank on one side."""

    def __init__(self, device: torch.device, wire: Wire) -> None:
        self._device, self._wire = device, wire

    def send(self, rows: Tensor, kind: Kind) -> None:
        """To the other rank, which receives the same kind."""
        wire = self._wire.activations(rows) if kind == "activations" else self._wire.gradients(rows)
        self._send(wire.contiguous(), kind)

    def receive(self, shape: tuple[int, ...], kind: Kind) -> Tensor:
        """What the other rank sends: a tensor of this shape."""
        return self._receive(shape, kind).float().view(shape)

    @abstractmethod
    def take_waited_seconds(self) -> float:
        """How long this rank has waited for what came from there since this was last asked."""

    @abstractmethod
    def _send(self, rows: Tensor, kind: Kind) -> None:
        """As they are."""

    @abstractmethod
    def _receive(self, shape: tuple[int, ...], kind: Kind) -> Tensor:
        """As they came."""


class NeighbourByAlltoall(Neighbour):
    """By Horovod, which knows no other way for a rank to reach one other."""

    def __init__(self, group: Group, device: torch.device, wire: Wire) -> None:
        super().__init__(device, wire)
        self._process_set, self._other = group.process_set, 1 - group.place
        self._sent, self._received = 0, 0
        self._leaving: deque[int] = deque()
        self._waited_seconds = 0.0

    def take_waited_seconds(self) -> float:
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited

    def _send(self, rows: Tensor, kind: Kind) -> None:
        # What has arrived is let go; only a name that is used again is waited for.
        while self._leaving and (len(self._leaving) == _NAMES or hvd.poll(self._leaving[0])):
            hvd.synchronize(self._leaving.popleft())
        self._leaving.append(self._exchange(rows, len(rows), f"{kind}.{self._sent % _NAMES}"))
        self._sent += 1

    def _receive(self, shape: tuple[int, ...], kind: Kind) -> Tensor:
        nothing = torch.empty(0, *shape[1:], device=self._device, dtype=self._wire.dtype)
        began = time.perf_counter()
        received, _ = hvd.synchronize(self._exchange(nothing, 0, f"{kind}.{self._received % _NAMES}"))
        self._waited_seconds += time.perf_counter() - began
        self._received += 1
        whole: Tensor = received
        return whole

    def _exchange(self, rows: Tensor, count: int, name: str) -> int:
        splits = torch.zeros(2, dtype=torch.int32)
        splits[self._other] = count
        handle: int = hvd.alltoall_async(rows, splits, f"pipeline.{name}", process_set=self._process_set)
        return handle


class NeighbourByMpi(Neighbour):
    """Point to point, where MPI launches."""

    def __init__(self, link: Link, device: torch.device, wire: Wire) -> None:
        super().__init__(device, wire)
        self._link = link

    def take_waited_seconds(self) -> float:
        return self._link.take_waited_seconds()

    def _send(self, rows: Tensor, kind: Kind) -> None:
        self._link.send(rows.cpu().numpy(), kind)

    def _receive(self, shape: tuple[int, ...], kind: Kind) -> Tensor:
        received = torch.empty(shape, dtype=self._wire.dtype)
        self._link.receive(received.numpy(), kind)
        return received.to(self._device)


def neighbour(group: Group, link: Link | None, device: torch.device, wire: Wire) -> Neighbour:
    """The other rank of `group`, by the link to it if there is one."""
    return NeighbourByMpi(link, device, wire) if link else NeighbourByAlltoall(group, device, wire)


class Arrive(Stage):
    """The lowest stage of a rank that is not the first: tokens [T, B] -> what the rank below made of them, [T, B, D]."""

    def __init__(self, below: Neighbour, width: int) -> None:
        self._below, self._width = below, width

    def forward(
        self, inputs: Tensor, state: LayerState | None, noise: Tensor | None, *, keep: int = 0
    ) -> tuple[Tensor, LayerState | None]:
        return self._below.receive((*inputs.shape, self._width), "activations"), state

    def backward(self, gradients_KTBH: Tensor, complete: Complete) -> Tensor:
        """Nothing comes out below on this rank."""
        self._below.send(gradients_KTBH, "gradients")
        return gradients_KTBH.new_empty(0)


class Depart:
    """In place of the output, of a rank that is not the last."""

    weights = ()

    def __init__(self, above: Neighbour) -> None:
        self._above = above
        self._shapes: list[torch.Size] = []

    touched = None

    def keep(self, outputs_TBH: Tensor, targets_TB: Tensor, weight: float, sampled: SampledWords | None = None) -> None:
        """Let a micro-batch go on, and wait for its gradient."""
        self._above.send(outputs_TBH, "activations")
        self._shapes.append(outputs_TBH.shape)

    def backward(self) -> tuple[Tensor, Tensor]:
        """No loss; the gradient by the outputs of the micro-batches that were kept, [K, T, B, H]."""
        shape = (len(self._shapes), *self._shapes[0])
        self._shapes.clear()
        gradients_KTBH = self._above.receive(shape, "gradients")
        return gradients_KTBH.new_zeros(()), gradients_KTBH

    def losses(self, outputs_TBH: Tensor, targets_N: Tensor) -> Tensor:
        """Zeros, [N]: they are the last rank's to tell."""
        self._above.send(outputs_TBH, "activations")
        return targets_N.new_zeros(targets_N.shape, dtype=torch.float32)
