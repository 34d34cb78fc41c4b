"""Horovod's collective operations in a framework, ready to be timed: on tensors that are made once, as gradients travel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hvd_lm.adapters.job import Job

Action = Callable[[], Any]
"""One operation, from its submission to its end; returns the framework's tensor, or a list of them. Collective."""


class Probe(ABC):
    """Of all ranks of a job."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def operation(self, collective: str, values: NDArray[Any]) -> Action | None:
        """What does the collective once with `values` [N], where N is a multiple of the ranks; None if Horovod does not have it.

        In an all-gather each rank has its part of the N, so that all have N at the end.
        """
        hvd, ranks = self._job.horovod, self._job.topology.size
        name = f"measured.{collective}.{values.dtype}.{len(values)}"
        if collective == "allreduce":
            return self.sums([values], name)
        if not hasattr(hvd, collective):
            return None
        tensor = self._tensor(values[: len(values) // ranks] if collective == "allgather" else values)
        more = {"broadcast": {"root_rank": 0}, "reducescatter": {"op": hvd.Sum}}.get(collective, {})
        return partial(getattr(hvd, collective), tensor, name=name, **more)

    def several(self, count: int, values: int) -> Action:
        """As many all-reduces, of `values` float32 numbers each, submitted at once."""
        return self.sums([np.zeros(values, np.float32)] * count, f"measured.{count}")

    @abstractmethod
    def sums(self, arrays: list[NDArray[Any]], name: str) -> Action:
        """Sums over all ranks, submitted at once, in the way in which this framework's reducer sends gradients."""

    @abstractmethod
    def _tensor(self, values: NDArray[Any]) -> Any:
        """On the device of this rank."""
