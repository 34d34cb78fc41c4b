"""A PyTorch process within its job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from horovod.common.exceptions import HorovodInternalError
from numpy.typing import NDArray

from hvd_lm.adapters.job import Job, device_of
from hvd_lm.adapters.pytorch.probe import PyTorchProbe
from hvd_lm.job.threads import worth_waking
from hvd_lm.model.split import BROADCAST, Share, blocks


class PyTorchJob(Job):
    """On the GPU of the local rank where there is one."""

    horovod = hvd
    probe_class = PyTorchProbe
    communication_errors = (HorovodInternalError,)

    def _set_threads(self, threads: int) -> int:
        torch.set_num_threads(threads)
        return threads

    @contextmanager
    def threads_for(self, multiply_adds: int) -> Iterator[None]:
        """Within, so few threads as so short a call is done soonest by; all of them where --threads said how many."""
        fewer = worth_waking(multiply_adds, self.threads) if self.chooses_threads else self.threads
        if fewer == self.threads:
            yield
            return
        torch.set_num_threads(fewer)
        try:
            yield
        finally:
            torch.set_num_threads(self.threads)

    def broadcast_rows(self, tensors: Mapping[str, torch.Tensor], held: Mapping[str, Share]) -> None:
        """Give all ranks that hold the same rows those of the first among them, in place. Collective."""
        handles = [
            hvd.broadcast_async_(
                tensor[rows.start : rows.stop], group.ranks[0], name=f"state.{name}.{rows.start}", process_set=group.process_set
            )
            for name, tensor in tensors.items()
            if (group := self.holders(held[name])).communicates
            for rows in blocks(range(len(tensor)), tensor.shape, BROADCAST)
        ]
        for handle in handles:
            hvd.synchronize(handle)

    def _make_deterministic(self) -> None:
        torch.use_deterministic_algorithms(True)

    def _choose_device(self, local_rank: int) -> None:
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", device_of(local_rank, torch.cuda.device_count()))
            torch.cuda.set_device(self.device)

    def _framework_summary(self) -> str:
        return f"torch {torch.__version__} on {self.device}"

    def _to_tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    def _to_numpy(self, tensor: torch.Tensor) -> NDArray[Any]:
        return np.asarray(tensor.numpy())
