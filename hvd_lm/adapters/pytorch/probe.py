"""Horovod's collective operations in PyTorch, ready to be timed."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch
from numpy.typing import NDArray

from hvd_lm.adapters.probe import Action, Probe


class PyTorchProbe(Probe):
    """On CPU or GPU."""

    def sums(self, arrays: list[NDArray[Any]], name: str) -> Action:
        tensors = [self._tensor(array) for array in arrays]  # zeros stay zeros, however often they are summed

        def act() -> list[torch.Tensor]:
            handles = [hvd.allreduce_async_(tensor, name=f"{name}.{i}", op=hvd.Sum) for i, tensor in enumerate(tensors)]
            return [hvd.synchronize(handle) for handle in handles]

        return act

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.tensor(values, device=self._job.device)  # type: ignore[attr-defined]
