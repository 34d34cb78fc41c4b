"""What the ranks of a model group tell each other in the middle of a forward or backward, as PyTorch tensors.

Shapes: M ranks of the group, N rows of each, alike on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import horovod.torch as hvd
import torch
from torch import Tensor

from hvd_lm.adapters.job import Group
from hvd_lm.adapters.pytorch.wire import Wire

Later = Callable[[], Tensor]
"""Waits for what is on its way, and returns it."""


class ModelGroup:
    """A group whose ranks make every call alike; `name` tells exchanges apart that are on their way together.

    What is called activations may travel as float16; all else travels as it is.
    """

    def __init__(self, group: Group, wire: Wire) -> None:
        self._process_set, self._wire = group.process_set, wire
        self.size, self.place = group.size, group.place

    def gather(self, rows: Tensor, name: str) -> Tensor:
        """The rows of all ranks, [M*N, ...]. Collective."""
        gathered: Tensor = hvd.synchronize(self._gather(rows, name))
        return gathered

    def gather_later(self, rows: Tensor, name: str) -> Later:
        """As `gather`."""
        handle = self._gather(rows, name)
        return lambda: hvd.synchronize(handle)

    def gather_activations_later(self, rows: Tensor, name: str) -> Later:
        """As `gather`, of activations."""
        handle = self._gather(self._wire.activations(rows), name)
        return lambda: hvd.synchronize(handle).to(rows.dtype)

    def sum_gradients_later(self, parts_MN: Tensor, name: str) -> Later:
        """This rank's N rows of the sum over the ranks of their [M*N, ...], of gradients by activations. Collective."""
        rows = len(parts_MN) // self.size
        # Each rank sums what it is sent: in float32, in one order, and no more bytes than by a ring.
        handle = self._exchange(self._wire.gradients(parts_MN), [rows] * self.size, name)

        def sum_of_parts() -> Tensor:
            parts, _ = hvd.synchronize(handle)
            parts_MNX: Tensor = parts.to(parts_MN.dtype).view(self.size, rows, *parts_MN.shape[1:])
            return parts_MNX.sum(0)

        return sum_of_parts

    def exchange(self, rows: Tensor, splits: Sequence[int], name: str) -> tuple[Tensor, list[int]]:
        """Send the first ``splits[0]`` rows to the first rank, and so on. Collective.

        Returns the rows that came, and how many from each.
        """
        received, counts = hvd.synchronize(self._exchange(rows, splits, name))
        return received, counts.tolist()

    def exchange_activations(self, rows: Tensor, splits: Sequence[int], name: str) -> Tensor:
        """The rows that came, as by `exchange`, of activations."""
        received, _ = self.exchange(self._wire.activations(rows), splits, name)
        return received.to(rows.dtype)

    def exchange_gradients(self, rows: Tensor, splits: Sequence[int], name: str) -> Tensor:
        """The rows that came, as by `exchange`, of gradients by activations."""
        received, _ = self.exchange(self._wire.gradients(rows), splits, name)
        return received.to(rows.dtype)

    def _gather(self, rows: Tensor, name: str) -> int:
        handle: int = hvd.allgather_async(rows.contiguous(), f"model.{name}", process_set=self._process_set)
        return handle

    def _exchange(self, rows: Tensor, splits: Sequence[int], name: str) -> int:
        sent = torch.tensor(splits, dtype=torch.int32)
        handle: int = hvd.alltoall_async(rows.contiguous(), sent, f"model.{name}", process_set=self._process_set)
        return handle
